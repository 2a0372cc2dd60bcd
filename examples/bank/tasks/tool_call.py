"""A request to an assistant to the function call that fulfils it, as JSON, from a fixed set of tools."""

from __future__ import annotations

import json
import random

from examples.bank.tasks.phrasing import loosen
from examples.bank.tasks.pools import (
    CITIES,
    FIRST_NAMES,
    Split,
    belongs,
    entries,
    name_of,
    noun,
    pool,
)

TOOLS = {
    "get_weather": "city",
    "set_timer": "minutes",
    "set_alarm": "time",
    "send_message": "to, text",
    "play_music": "query",
    "set_light": "room, state",
    "convert_currency": "amount, from, to",
    "book_table": "city, people, time",
}
INSTRUCTIONS = (
    "Call the right tool", "Answer with a function call", "Function call for", "Which tool call handles this request",
    "Emit the tool call as JSON", "tool call", "Use a tool", "Pick the function and its arguments", "function call",
    "Respond only with the function call", "Convert this request to a tool call", "Generate the API call for",
    "Assistant action", "Call a function for this", "JSON function call",
)  # fmt: skip
MESSAGES = entries("""
I am running late|see you at eight|the train is delayed|happy birthday|call me back|dinner is ready
I am on my way|the meeting moved to Friday|thanks for the help|do not forget the keys|good luck today
please bring milk|I will be there soon|the door is open|can we talk later|lunch at noon|the package arrived
I left the office|sorry about yesterday|the flight was cancelled|pick up the kids|we won the game
I found your phone|the car is fixed|send me the report|I miss you|the concert starts at nine|buy some bread
I am stuck in traffic|the doctor is free now
""")
MUSIC = entries("""
jazz|classical piano|Miles Davis|lo-fi beats|Queen|rock from the eighties|Beethoven|reggae|Daft Punk|salsa
country music|the Beatles|techno|movie soundtracks|Taylor Swift|blues|Mozart|rain sounds|hip hop|Adele|opera
Nina Simone|folk songs|Metallica|summer hits|Johnny Cash|ambient music|Bob Marley|Christmas songs|Coldplay
""")
ROOMS = entries("""
kitchen|bedroom|living room|office|hallway|bathroom|garage|basement|dining room|attic|guest room|garden|balcony
nursery|studio|laundry room
""")
CURRENCIES = {
    "USD": ("dollars", "US dollars", "USD"),
    "EUR": ("euros", "EUR", "euro"),
    "GBP": ("pounds", "British pounds", "GBP"),
    "JPY": ("yen", "Japanese yen", "JPY"),
    "CHF": ("Swiss francs", "CHF", "francs"),
    "INR": ("rupees", "Indian rupees", "INR"),
}
MINUTES = {5: "five", 10: "ten", 15: "fifteen", 20: "twenty", 30: "half an hour", 60: "one hour", 120: "two hours"}


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A request and its call."""
    name = rng.choice(list(TOOLS))
    while True:
        request, arguments = _MAKERS[name](rng, split)
        # Calls that contain only numbers are split by the complete call.
        if name not in ("set_timer", "set_alarm", "convert_currency") or belongs(split, json.dumps(arguments)):
            break
    spoken = _spoken(rng, request, free_text=name in ("send_message", "play_music"))
    return spoken, json.dumps({"name": name, "arguments": arguments})


def _spoken(rng: random.Random, request: str, *, free_text: bool) -> str:
    """The request with polite phrases, but not after free text, where they would become part of it."""
    draw = rng.random()
    if draw < 0.12:
        request = f"please {request}"
    elif draw < 0.20 and not free_text:
        request = f"{request} please"
    elif draw < 0.28:
        request = f"hey, {request}"
    if rng.random() < 0.6:
        request = request[0].upper() + request[1:]
    return loosen(rng, request + ("" if request.endswith("?") else "."))


def frame(rng: random.Random, request: str) -> str:
    """Wrap a request in a prompt: with an instruction, with the list of tools, or as it is."""
    draw = rng.random()
    if draw < 0.40:
        return request
    if draw < 0.75:
        instruction = rng.choice(INSTRUCTIONS)
        instruction = instruction.lower() if rng.random() < 0.4 else instruction
        return rng.choice((f"{instruction}: {request}", f"{instruction}:\n{request}", f"{request}\n{instruction}"))
    names = rng.sample(list(TOOLS), len(TOOLS))
    signature = rng.random() < 0.5
    tools = ", ".join(f"{name}({TOOLS[name]})" if signature else name for name in names)
    return rng.choice((f"Tools: {tools}\nRequest: {request}", f"Available functions: {tools}. User: {request}"))


def _get_weather(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    city = name_of(rng, split, CITIES)
    forms = ("what's the weather in {}?", "weather in {}", "how is the weather in {} today?", "is it raining in {}?",
             "what's the weather like in {}?", "how's the weather in {}", "will it be sunny in {}?",
             "check the weather for {}", "tell me the forecast for {}", "{} weather",
             "do I need an umbrella in {}?", "how cold is it in {}?", "how warm is it in {} right now?")  # fmt: skip
    return rng.choice(forms).format(city), {"city": city}


def _set_timer(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    del split
    minutes = rng.choice((*MINUTES, *range(1, 60)))
    duration = f"{minutes} minutes" if minutes > 1 else "1 minute"
    if minutes in MINUTES and rng.random() < 0.4:
        duration = MINUTES[minutes] if minutes >= 30 else f"{MINUTES[minutes]} minutes"
    forms = ("set a timer for {}", "timer {}", "start a timer for {}", "remind me in {}", "count down {}",
             "wake me in {}", "set timer to {}", "I need a timer for {}", "let me know when {} are over")  # fmt: skip
    forms += (f"set a {minutes} minute timer", f"{minutes} minute timer", f"start a {minutes}-minute timer")
    return rng.choice(forms).format(duration), {"minutes": minutes}


def _clock(rng: random.Random) -> str:
    """A time of day in words; the call repeats it verbatim."""
    hour, minute = rng.randrange(24), rng.choice((0, 0, 15, 30, 45, rng.randrange(60)))
    twelve, half = hour % 12 or 12, "am" if hour < 12 else "pm"
    forms = [
        f"{hour:02d}:{minute:02d}",
        f"{twelve}:{minute:02d}",
        f"{twelve}:{minute:02d} {half}",
        f"{twelve}:{minute:02d}{half}",
    ]
    if minute == 0:
        forms += [f"{twelve} {half}", f"{twelve}{half}", "noon" if hour == 12 else f"{twelve} o'clock"]
    return rng.choice(forms)


def _set_alarm(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    del split
    time = _clock(rng)
    forms = ("set an alarm for {}", "wake me up at {}", "alarm at {}", "set my alarm to {}", "I have to get up at {}",
             "alarm for {}", "make sure I am awake at {}", "wake me at {}")  # fmt: skip
    return rng.choice(forms).format(time), {"time": time}


# 0, 1 nouns; 2 an adjective; 3 a number; 4 a name; 5 a verb; 6 a time
MESSAGE_FORMS = entries("""
the {0} is {2}|bring the {0} and the {1}|I lost my {0}|do you have a {0}?|the {0} needs a new {1}|I am at the {0}
look at the {0}|we need {3} more {0}s|meet me near the {0} at {3}|no {0} {6}|{4} has the {0}|{4} is {2}
your {0} looks {2}|I will buy a {0} for {4}|call {4} about the {0}|I'll {5} the {0} {6}|can you {5} my {0}?
don't {5} the {0}|see you {6}|it's {2} {6}|we're {2}|I'm at the {0}|{4} will {5} it {6}|let's {5} a {0} {6}
did you {5} the {0}?|the {2} {0} is in the {1}|I have {3} {0}s|please {5} the {0}|I can't {5} {6}
happy {0} day
""")
ADJECTIVES = """ready broken late empty new open cold here gone safe great wet red lost cheap done closed heavy tired
sick happy busy hungry early""".split()
VERBS = "fix bring sell paint clean move find keep drop send check wash lend hide take return share".split()
TIMES = ("today", "tonight", "tomorrow", "on Friday", "at six", "next week", "soon", "in an hour", "later")


def _message(rng: random.Random, split: Split) -> str:
    if split == "heldout" or rng.random() < 0.3:
        return rng.choice(pool(split, MESSAGES))
    words = (
        noun(rng, split),
        noun(rng, split),
        rng.choice(ADJECTIVES),
        rng.randrange(2, 12),
        name_of(rng, split, FIRST_NAMES),
        rng.choice(VERBS),
        rng.choice(TIMES),
    )
    return rng.choice(MESSAGE_FORMS).format(*words)


def _send_message(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    to, text = name_of(rng, split, FIRST_NAMES), _message(rng, split)
    forms = ["tell {} {}", "send a message to {}: {}", "text {} {}", "message {} saying {}", "send {} the message {}",
             "text {}: {}", "message {}: {}"]  # fmt: skip
    if text.split()[0] in ("I", "I'm", "I'll", "the", "we", "we're", "it's", "my", "your"):
        forms += ["tell {} that {}", "write to {} that {}", "let {} know that {}", "let {} know {}", "text {} that {}"]
    return rng.choice(forms).format(to, text), {"to": to, "text": text}


def _play_music(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    query = rng.choice(pool(split, MUSIC))
    if split == "train" and rng.random() < 0.5:
        made_up = (name_of(rng, split, CITIES), f"{name_of(rng, split, FIRST_NAMES)} {name_of(rng, split, CITIES)}",
                   f"songs about the {noun(rng, split)}", f"{noun(rng, split)} music",
                   f"the {noun(rng, split)}s")  # fmt: skip
        query = rng.choice(made_up)
    forms = ("play {}", "put on {}", "I want to hear {}", "play some {}", "can you play {}?", "start playing {}",
             "listen to {}", "play {} on the speaker", "put {} on")  # fmt: skip
    return rng.choice(forms).format(query), {"query": query}


def _set_light(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    room, state = rng.choice(pool(split, ROOMS)), rng.choice(("on", "off"))
    if split == "train" and rng.random() < 0.3:
        room = f"{noun(rng, split)} {rng.choice(('room', 'hall', 'house', 'corner'))}"
    forms = ["turn {1} the light in the {0}", "turn the {0} light {1}", "switch {1} the {0} lights", "{0} light {1}",
             "lights {1} in the {0}", "turn {1} the {0} lamp", "turn {1} the lights in the {0}",
             "turn the lights {1} in the {0}", "switch the light in the {0} {1}"]  # fmt: skip
    forms += ["it is too dark in the {0}"] if state == "on" else ["no light in the {0} anymore"]
    return rng.choice(forms).format(room, state), {"room": room, "state": state}


def _convert_currency(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    del split
    source, target = rng.sample(list(CURRENCIES), 2)
    amount = rng.choice((rng.randrange(1, 1000), rng.randrange(1, 50) * 10, rng.randrange(1, 20) * 100))
    source_name, target_name = rng.choice(CURRENCIES[source]), rng.choice(CURRENCIES[target])
    forms = ("convert {} {} to {}", "how much is {} {} in {}?", "{} {} to {}", "what are {} {} in {}?",
             "change {} {} into {}", "exchange {} {} for {}", "{} {} in {}")  # fmt: skip
    return rng.choice(forms).format(amount, source_name, target_name), {"amount": amount, "from": source, "to": target}


def _book_table(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    city, people = name_of(rng, split, CITIES), rng.randrange(1, 13)
    time = _clock(rng)
    words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
    count = words[people] if people in words and rng.random() < 0.4 else str(people)
    forms = ("book a table for {1} in {0} at {2}", "book a table for {1} people in {0} at {2}",
             "reserve a table in {0} for {1} at {2}",
             "table for {1} at {2} in {0}", "I need a restaurant in {0} for {1} people at {2}",
             "dinner in {0} at {2} for {1}")  # fmt: skip
    return rng.choice(forms).format(city, count, time), {"city": city, "people": people, "time": time}


_MAKERS = {
    "get_weather": _get_weather,
    "set_timer": _set_timer,
    "set_alarm": _set_alarm,
    "send_message": _send_message,
    "play_music": _play_music,
    "set_light": _set_light,
    "convert_currency": _convert_currency,
    "book_table": _book_table,
}
