"""Words to a cron expression: "every weekday at 7:30 am" -> `30 7 * * 1-5`. Sunday is 0."""

from __future__ import annotations

import random

from examples.bank.tasks.phrasing import ask
from examples.bank.tasks.pools import Split, belongs

INSTRUCTIONS = (
    "Write a cron expression", "Cron expression for", "Convert to cron", "Turn this schedule into cron", "cron",
    "Give me the crontab schedule for", "What is the cron expression for", "Translate this schedule to cron syntax",
    "crontab", "Schedule as cron", "I need a cron line that runs", "cron syntax for",
    "Express this as a cron schedule",
    "What cron schedule means", "Make a cron job that runs", "Crontab entry for", "Give the five cron fields",
    "cron please", "Output only the cron expression", "schedule to cron",
)  # fmt: skip
DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "twelve",
                15: "fifteen", 20: "twenty", 30: "thirty"}  # fmt: skip


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A schedule in words, and its cron expression."""
    while True:
        words, expression = rng.choices(
            (_interval, _hourly, _daily, _days, _monthly, _yearly), weights=(3, 1.5, 3, 5, 3, 2)
        )[0](rng)
        # Short expressions (*/5 * * * *) are few, so both splits share them.
        if expression.startswith("*") or belongs(split, expression):
            break
    words = _job(rng, words)
    return words, expression


def frame(rng: random.Random, text: str) -> str:
    """Wrap `text` in a prompt."""
    return ask(rng, INSTRUCTIONS, text, bare=0.18)


def _job(rng: random.Random, words: str) -> str:
    draw = rng.random()
    if draw < 0.2:
        job = rng.choice(("the backup", "a job", "the report", "my script", "cleanup", "the task", "it"))
        words = f"run {job} {words}"
    if rng.random() < 0.3:
        words = words[0].upper() + words[1:]
    if rng.random() < 0.15:
        words = words.lower()
    return words + "." if rng.random() < 0.15 else words


def _time(rng: random.Random) -> tuple[str, str]:
    """A time of day in words and its two cron fields."""
    hour = rng.randrange(24)
    minute = rng.choice((0, 0, 0, 5, 10, 15, 20, 25, 30, 30, 35, 40, 45, 50, 55, rng.randrange(60)))
    fields = f"{minute} {hour}"
    if minute == 0 and hour == 0 and rng.random() < 0.7:
        return "at midnight", fields
    if minute == 0 and hour == 12 and rng.random() < 0.7:
        return "at noon", fields
    half = "am" if hour < 12 else "pm"
    twelve = hour % 12 or 12
    forms = [f"at {hour:02d}:{minute:02d}", f"at {hour}:{minute:02d}" if hour > 12 else f"at {hour:02d}:{minute:02d}"]
    suffix = rng.choice((half, f" {half}", f" {half.upper()}", half.upper()))
    forms += [f"at {twelve}:{minute:02d}{suffix}"] * 2
    if minute == 0:
        forms += [f"at {twelve}{suffix}"] * 3
    if 0 < hour < 12:
        forms.append(f"at {twelve}:{minute:02d} in the morning")
    elif 12 < hour < 18:
        forms.append(f"at {twelve}:{minute:02d} in the afternoon")
    elif hour >= 18:
        forms.append(f"at {twelve}:{minute:02d} in the evening")
    if minute == 30:
        forms.append(f"at half past {twelve}{suffix}")
    if minute == 15:
        forms.append(f"at quarter past {twelve}{suffix}")
    return rng.choice(forms), fields


def _count(rng: random.Random, number: int) -> str:
    return NUMBER_WORDS[number] if number in NUMBER_WORDS and rng.random() < 0.3 else str(number)


def _interval(rng: random.Random) -> tuple[str, str]:
    draw = rng.random()
    if draw < 0.08:
        return rng.choice(("every minute", "once a minute", "each minute")), "* * * * *"
    if draw < 0.6:
        step = rng.choice((2, 3, 4, 5, 6, 10, 12, 15, 20, 30))
        phrase = _count(rng, step)
        start = rng.choice((f"every {phrase} minutes", f"every {phrase} min", f"each {phrase} minutes"))
        if rng.random() < 0.25:
            return (
                f"{start} {rng.choice(('on weekdays', 'Monday to Friday', 'on working days'))}",
                f"*/{step} * * * 1-5",
            )
        if rng.random() < 0.25:
            first, last = rng.randrange(6, 12), rng.randrange(13, 22)
            words = rng.choice(("between {} and {}", "from {} to {}"))
            phrase = (
                words.format(f"{first}:00", f"{last}:00")
                if rng.random() < 0.5
                else words.format(f"{first}am", f"{last - 12}pm")
            )
            return f"{start} {phrase}", f"*/{step} {first}-{last} * * *"
        return start, f"*/{step} * * * *"
    if draw < 0.7:
        return rng.choice(("every hour", "hourly", "once an hour", "at the start of every hour")), "0 * * * *"
    step = rng.choice((2, 3, 4, 6, 8, 12))
    return f"every {_count(rng, step)} hours", f"0 */{step} * * *"


def _hourly(rng: random.Random) -> tuple[str, str]:
    minute = rng.randrange(1, 60)
    forms = (f"every hour at minute {minute}", f"at {minute} minutes past every hour",
    f"{minute} minutes past the hour",
             f"hourly at :{minute:02d}", f"at minute {minute} of every hour")  # fmt: skip
    return rng.choice(forms), f"{minute} * * * *"


def _daily(rng: random.Random) -> tuple[str, str]:
    time, fields = _time(rng)
    forms = (f"every day {time}", f"daily {time}", f"{time} every day", f"each day {time}", f"once a day {time}",
             f"{time} daily", f"{time}")  # fmt: skip
    return rng.choice(forms), f"{fields} * * *"


def _days(rng: random.Random) -> tuple[str, str]:
    time, fields = _time(rng)
    draw = rng.random()
    if draw < 0.25:
        days, field = rng.choice(("every weekday", "on weekdays", "Monday to Friday", "Mon-Fri", "on working days",
                                  "Monday through Friday", "each weekday", "every workday")), "1-5"  # fmt: skip
    elif draw < 0.38:
        days, field = rng.choice(("on weekends", "every weekend", "on Saturday and Sunday", "Saturdays and Sundays",
                                  "on the weekend")), "0,6"  # fmt: skip
    elif draw < 0.75:
        day = rng.randrange(7)
        name = DAYS[day]
        days = rng.choice((f"every {name}", f"on {name}s", f"each {name}", f"{name}s", f"weekly on {name}",
                           f"on {name[:3]}", f"every {name[:3]}"))  # fmt: skip
        field = str(day)
    else:
        chosen = sorted(rng.sample(range(7), rng.choice((2, 2, 3))))
        names = [DAYS[day] + rng.choice(("s", "")) if rng.random() < 0.8 else DAYS[day][:3] for day in chosen]
        days = "on " + ", ".join(names[:-1]) + " and " + names[-1]
        field = ",".join(map(str, chosen))
    return rng.choice((f"{days} {time}", f"{time} {days}")), f"{fields} * * {field}"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def _monthly(rng: random.Random) -> tuple[str, str]:
    time, fields = _time(rng)
    day = rng.choice((1, 1, 15, rng.randrange(1, 29), rng.randrange(1, 29)))
    day_words = (
        rng.choice((_ordinal(day), _ordinal(day), f"day {day}"))
        if day > 1
        else rng.choice(("1st", "first", "first day"))
    )
    forms = (f"on the {day_words} of every month {time}", f"{time} on the {day_words} of each month",
             f"monthly on the {day_words} {time}", f"every month on the {day_words} {time}",
             f"on the {day_words} of the month {time}")  # fmt: skip
    words = rng.choice(forms)
    return words.replace("the day", "day"), f"{fields} {day} * *"


def _yearly(rng: random.Random) -> tuple[str, str]:
    time, fields = _time(rng)
    month, day = rng.randrange(12), rng.randrange(1, 29)
    date = rng.choice((f"{MONTHS[month]} {day}", f"{_ordinal(day)} of {MONTHS[month]}", f"{day} {MONTHS[month]}",
                       f"{MONTHS[month]} {_ordinal(day)}"))  # fmt: skip
    forms = (f"every year on {date} {time}", f"{time} on {date}", f"yearly on {date} {time}", f"on {date} {time}")
    return rng.choice(forms), f"{fields} {day} {month + 1} *"
