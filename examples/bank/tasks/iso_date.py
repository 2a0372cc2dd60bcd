"""A date in words or in a local notation to ISO 8601: "the third of March 2021" -> `2021-03-03`."""

from __future__ import annotations

import calendar
import random
from datetime import date, timedelta

from examples.bank.tasks.phrasing import ask
from examples.bank.tasks.pools import Split, belongs

INSTRUCTIONS = (
    "Convert to ISO date", "ISO date", "Write this date as YYYY-MM-DD", "iso 8601", "Normalize the date",
    "Turn this into YYYY-MM-DD", "Give the ISO 8601 date for", "Format this date as ISO", "to ISO format",
    "What is this date in ISO format", "date in YYYY-MM-DD", "Standardize this date",
    "Rewrite the date as yyyy-mm-dd",
    "Parse this date", "Date to ISO", "Convert the following date to YYYY-MM-DD format", "YYYY-MM-DD",
    "Machine readable date", "iso date please", "Reformat this date",
)  # fmt: skip
ONES = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
        "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
        "twentieth")  # fmt: skip
CARDINALS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
             "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty", 6: "sixty", 7: "seventy", 8: "eighty", 9: "ninety"}
OCCASIONS = ("born on {}", "The meeting is on {}", "due {}", "Delivered on {}", "on {}", "Invoice dated {}",
             "The contract ends {}", "We met on {}", "deadline: {}", "Valid until {}")  # fmt: skip


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A text with a date, and the date in ISO 8601."""
    while True:
        span = (date(1940, 1, 1), date(2039, 12, 31)) if rng.random() < 0.6 else (date(2005, 1, 1), date(2030, 12, 31))
        day = span[0] + timedelta(days=rng.randrange((span[1] - span[0]).days))
        if belongs(split, day.isoformat()):
            break
    words = _words(rng, day)
    if rng.random() < 0.12:
        words = rng.choice(OCCASIONS).format(words)
    return words, day.isoformat()


def frame(rng: random.Random, text: str) -> str:
    """Wrap `text` in a prompt."""
    return ask(rng, INSTRUCTIONS, text, bare=0.2)


def _words(rng: random.Random, day: date) -> str:
    month = calendar.month_name[day.month]
    if rng.random() < 0.25:
        month = rng.choice((month[:3], month[:3] + ".")) if len(month) > 4 else month
    number = rng.choice((str(day.day), _ordinal(day.day), _ordinal(day.day), spelled_ordinal(day.day)))
    year = spelled_year(day.year) if rng.random() < 0.12 else str(day.year)
    the = rng.choice(("the ", "")) if not number.isdigit() else ""
    weekday = calendar.day_name[day.weekday()]
    forms = (
        f"{the}{number} of {month} {year}", f"{month} {number}, {year}", f"{number} {month} {year}",
        f"{month} {number} {year}", f"{weekday}, {month} {number}, {year}", f"{the}{number} of {month}, {year}",
        f"{weekday} {number} {month} {year}", f"{day.day:02d}-{month[:3]}-{day.year}",
        f"{day.day}.{day.month}.{day.year}", f"{day.year}/{day.month:02d}/{day.day:02d}", f"{number} {month}, {year}",
        f"{month} the {number} {year}",
    )  # fmt: skip
    words = rng.choice(forms)
    draw = rng.random()
    if draw < 0.2:
        return words.lower()
    return words.upper() if draw < 0.24 else words


def _ordinal(number: int) -> str:
    if number in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def spelled_ordinal(number: int) -> str:
    """1 to 31 in words."""
    if number <= 20:
        return ONES[number]
    if number == 30:
        return "thirtieth"
    return f"{TENS[number // 10]}-{ONES[number % 10]}"


def spelled_year(year: int) -> str:
    """1940 to 2039 in words."""
    if 2000 <= year < 2010:
        return "two thousand" + (f" and {CARDINALS[year % 10]}" if year % 10 else "")
    return (
        f"{_two_digits(year // 100)} {_two_digits(year % 100)}" if year % 100 else f"{_two_digits(year // 100)} hundred"
    )


def _two_digits(number: int) -> str:
    if number < 20:
        return CARDINALS[number]
    return TENS[number // 10] + (f"-{CARDINALS[number % 10]}" if number % 10 else "")
