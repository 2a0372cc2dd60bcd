"""A review or remark to one word: `positive`, `negative` or `neutral`.

Some texts are whole remarks, the rest is put together from adjectives, verbs and details; the held-out rows are about
other things.
"""

from __future__ import annotations

import random

from examples.bank.tasks.phrasing import ask
from examples.bank.tasks.pools import CITIES, FIRST_NAMES, Split, entries, noun, pool, product

INSTRUCTIONS = (
    "Sentiment", "What is the sentiment", "Classify the sentiment", "Positive, negative or neutral?",
    "sentiment of this review",
    "Is this review positive or negative", "Label the sentiment", "How does the writer feel", "sentiment analysis",
    "positive/negative/neutral", "Rate the tone of this text", "Sentiment label", "Opinion polarity",
    "Tell me the sentiment of this text", "Determine whether this is positive, negative or neutral",
    "Review sentiment",
    "What is the mood of this comment", "Is the customer happy", "Classify this review", "sentiment?",
)  # fmt: skip
THINGS = entries("""
film|movie|book|restaurant|hotel|concert|waiter|soup|pizza|phone|laptop|service|staff|room|show|album|game|app
meal|coffee|course|museum|flight|play|series|website|breakfast|driver|teacher|support|beach|bar|store|update
camera|novel|garden|performance|delivery|dessert|singer|ending|plot|trip|train ride|guide|software|burger|salad
band
""")

REMARKS = {
    "positive": entries("""
I loved the {t}|The {t} was wonderful|What a fantastic {t}|Best {t} I have ever had
The {t} exceeded my expectations|I would recommend this {t} to anyone|The {t} made my day
Absolutely brilliant {t}|I am very happy with the {t}|Such a charming {t}|Great {t}, will come again
The {t} is worth every penny|I could not stop smiling during the {t}|Five stars for the {t}
The {t} was a delight from start to end|Perfect {t}, nothing to complain about|This {t} is a real gem
Excellent {t} and friendly people|I enjoyed every minute of the {t}|The {t} works like a dream
Superb quality, the {t} is amazing|The {t} was so good that we went back the next day|My family adores the {t}
I am impressed by the {t}|The {t} is beautiful and well made|Thank you for this awesome {t}
The {t} saved our evening|An outstanding {t}|I have never been so pleased with a {t}
The {t} was delicious and fresh|Everything about the {t} was lovely|Really glad I chose this {t}
The {t} is fun and easy to like|We had a great time with the {t}|Wow, this {t} is incredible
The {t} was funny, warm and clever|Not bad at all, I really like the {t}|I can't praise the {t} enough
A masterpiece of a {t}|The {t} is much better than I expected|Highly recommended {t}
The {t} feels solid and looks great|Can't wait to try the {t} again
"""),
    "negative": entries("""
I hated the {t}|The {t} was terrible|What a disappointing {t}|Worst {t} I have ever had
The {t} was a waste of money|I would not recommend this {t} to anyone|The {t} ruined my day|Absolutely awful {t}
I am very unhappy with the {t}|Such a boring {t}|Never again this {t}|The {t} is not worth the price
I fell asleep during the {t}|One star for the {t}|The {t} was a nightmare from start to end
Horrible {t}, everything went wrong|This {t} is rubbish|Rude people and a bad {t}
I regret every minute of the {t}|The {t} broke after two days|Poor quality, the {t} is useless
The {t} was so bad that we left early|My family could not stand the {t}|I am annoyed by the {t}
The {t} is ugly and badly made|I want my money back for this {t}|The {t} spoiled our evening|A dreadful {t}
I have never been so angry about a {t}|The {t} was cold and tasteless|Everything about the {t} was disgusting
Really sorry I chose this {t}|The {t} is dull and hard to like|We had an awful time with the {t}
Ugh, this {t} is a mess|The {t} was slow, loud and stupid|Not good at all, I dislike the {t}
I can't complain enough about the {t}|A disaster of a {t}|The {t} is much worse than I expected|Avoid this {t}
The {t} feels cheap and looks sad|I will never try the {t} again|Do not waste your time on this {t}
"""),
    "neutral": entries("""
The {t} is on the second floor|I bought the {t} last week|The {t} starts at eight|The {t} comes in three colours
We saw the {t} on Tuesday|The {t} was neither good nor bad|It is an average {t}
The {t} was okay, nothing special|The {t} costs about twenty dollars|My brother has the same {t}
I have not formed an opinion about the {t}|The {t} lasts two hours|There was a {t} near the station
The {t} is as described|I went to the {t} with {n}|The {t} is open from nine to five|It is just a {t}
The {t} was made in 2019|They have changed the {t}|The {t} arrived on Monday|I use the {t} at work
The {t} is available in {c}|It does what a {t} does|The {t} is so-so|An ordinary {t}|The {t} has a blue cover
The {t} weighs two kilos|{n} told me about the {t}|No strong feelings about the {t}|The {t} is located in {c}
I will use the {t} tomorrow|The {t} was fine, I guess|There are five kinds of {t}|The {t} is the one we ordered
The {t} is like most others|You can reserve the {t} online|The {t} was announced in May
The {t} has good and bad sides|Half of the {t} was good, half was bad|The {t} is mediocre
"""),
}

ADJECTIVES = {
    "positive": entries("""
great|good|lovely|wonderful|amazing|fantastic|excellent|perfect|brilliant|superb|delicious|charming|beautiful|stunning
impressive|delightful|awesome|outstanding|terrific|marvellous|pleasant|comfortable|reliable|fun|friendly|helpful|cosy
fresh|elegant|clever|touching|gorgeous|magnificent|flawless|exciting|heavenly|top notch|first class|really nice|spotless
"""),
    "negative": entries("""
bad|terrible|awful|horrible|boring|disappointing|disgusting|dreadful|poor|useless|ugly|dirty|noisy|rude|cheap|broken
annoying|tasteless|overpriced|slow|dull|uncomfortable|unreliable|stupid|lousy|miserable|pathetic|appalling|bland|stale
faulty|frustrating|unbearable|garbage|a joke|a rip-off|painful|horrendous|unfriendly|a letdown|nasty
"""),
    "neutral": entries("""
okay|average|ordinary|standard|typical|as expected|fine I guess|neither good nor bad|so-so|acceptable|nothing special
like any other|unremarkable|alright|passable|meh|middling|similar to the old one
"""),
}
VERBS = {
    "positive": entries(
        "loved|enjoyed|adored|really liked|fell in love with|am thrilled with|can recommend|was blown away by"
    ),
    "negative": entries("hated|disliked|regret|can't stand|am fed up with|was let down by|returned|want a refund for"),
    "neutral": entries("bought|saw|tried|used|visited|ordered|read about|heard of|own|received"),
}
DETAILS = {
    "positive": entries("""
works perfectly|lasts for ages|was worth every cent|is just what I needed|made everyone laugh|fits like a glove
saved me {k} hours|is even better after {k} weeks|got {k} compliments on the first day|never lets me down
looks even better than on the pictures|has the best {o} in town|deserves more than {k} stars|made my whole {w} better
"""),
    "negative": entries("""
stopped working after {k} days|fell apart within a week|arrived scratched|smells of old {o}|is far too small
took {k} hours and nobody said sorry|is a waste of {k} dollars|lost its {o} on the first day|made me sick
never did what it promised|died after an hour|is the worst since {y}|was cold when it came|gave me a headache
"""),
    "neutral": entries("""
has {k} {o}s|comes with a {o}|is made of {o}|was delivered on {w}|costs {k} dollars|opens at {k}|has a {o} on the side
measures {k} by {k} cm|is next to the {o}|contains two {o}s|starts on {w}|was built in {y}|takes {k} minutes
is sold in packs of {k}|belongs to my neighbour|is kept in the {o} room|runs from {w} on
"""),
}
TAILS = {
    "positive": entries(
        "would buy again|highly recommended|will be back|thank you|five stars|try it|worth it|so happy"
    ),
    "negative": entries("never again|stay away|do not bother|money wasted|zero stars|I want my money back|avoid|shame"),
    "neutral": entries(
        "that is all|more next week|no opinion yet|see the manual|as the label says|just for information"
    ),
}
OPENINGS = ("honestly", "all in all", "in my opinion", "to be fair", "well", "after two weeks", "update", "yesterday",
            "for this price", "overall", "I have to say", "my verdict", "in short", "as a regular guest")  # fmt: skip
PARTS = ("sound", "food", "staff", "quality", "taste", "design", "view", "story", "screen", "battery", "colour",
         "smell", "service", "material", "atmosphere", "music", "ending", "support", "handle", "packaging")  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A remark, and its label."""
    label = rng.choice(list(REMARKS))
    thing = rng.choice(pool(split, THINGS)) if rng.random() < 0.75 else product(rng, split)
    remark = (_remark if rng.random() < 0.4 else _composed)(rng, split, label, thing)
    if rng.random() < 0.3:
        again = thing if rng.random() < 0.5 else "whole thing"
        remark = f"{remark}{rng.choice(('. ', '. ', ', ', ' and '))}{_composed(rng, split, label, again)}"
    if rng.random() < 0.15:
        remark = f"{rng.choice(OPENINGS)}, {remark}"
    if rng.random() < 0.2:
        remark = f"{remark}{rng.choice(('. ', ', ', ' - '))}{rng.choice(TAILS[label])}"
    if rng.random() < 0.7:
        remark = remark[0].upper() + remark[1:]
    draw = rng.random()
    if draw < 0.6:
        remark += "."
    elif draw < 0.75 and label != "neutral":
        remark += rng.choice(("!", "!!", "!!!"))
    draw = rng.random()
    if draw < 0.2:
        remark = remark.lower()
    elif draw < 0.25:
        remark = remark.upper()
    return remark, label


def frame(rng: random.Random, text: str) -> str:
    """Wrap `text` in a prompt."""
    return ask(rng, INSTRUCTIONS, text, bare=0.25)


def _remark(rng: random.Random, split: Split, label: str, thing: str) -> str:
    name, city = rng.choice(pool(split, FIRST_NAMES)), rng.choice(pool(split, CITIES))
    return rng.choice(REMARKS[label]).format(t=thing, n=name, c=city)


def _composed(rng: random.Random, split: Split, label: str, thing: str) -> str:
    the = rng.choice(("the", "the", "this", "my", "our"))
    first, second = rng.sample(ADJECTIVES[label], 2)
    detail = rng.choice(DETAILS[label]).format(
        k=rng.randrange(2, 30), o=noun(rng, split), w=rng.choice(WEEKDAYS), y=rng.randrange(1950, 2024)
    )
    forms = [
        f"{the} {thing} {rng.choice(('was', 'is'))} {rng.choice(('', '', 'so ', 'really ', 'just '))}{first}",
        f"{the} {thing} was {first} and {second}",
        f"I {rng.choice(VERBS[label])} {the} {thing}",
        f"{the} {thing} {detail}",
        f"{the} {thing} {detail}",
        f"the {rng.choice(PARTS)} of {the} {thing} is {first}",
        f"{rng.choice(PARTS)} {first}, {rng.choice(PARTS)} {second}",
    ]
    if " " not in first and label != "neutral":
        forms += [
            f"{first} {thing}",
            f"what {'an' if first[0] in 'aeiou' else 'a'} {first} {thing}",
            f"{first} {thing}, {second} {rng.choice(PARTS)}",
        ]
    return rng.choice(forms)
