"""A sentence about a person or an order to one line of JSON with its facts, keys in a fixed order."""

from __future__ import annotations

import json
import random

from examples.bank.tasks.phrasing import ask, loosen
from examples.bank.tasks.pools import (
    CITIES,
    COMPANIES,
    FIRST_NAMES,
    LAST_NAMES,
    Split,
    job,
    name_of,
    plural,
    product,
)

INSTRUCTIONS = (
    "Extract the fields as JSON", "Extract JSON", "Convert to JSON", "Turn this into JSON", "json",
    "Give me JSON for this sentence", "Return the facts as a JSON object", "Parse into JSON", "Make a JSON record",
    "Structured data please", "Pull out the details as JSON", "Extract the entities as JSON", "to json",
    "Represent this as JSON", "Read the text and output JSON", "JSON only", "Extract structured data",
    "Get the key facts in JSON format", "Fill a JSON object from this text", "What are the fields, as JSON",
)  # fmt: skip


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A sentence, and its facts as JSON."""
    sentence, facts = (_person if rng.random() < 0.55 else _order)(rng, split)
    return loosen(rng, sentence), json.dumps(facts)


def frame(rng: random.Random, text: str) -> str:
    """Wrap `text` in a prompt."""
    return ask(rng, INSTRUCTIONS, text, bare=0.12)


def _name(rng: random.Random, split: Split) -> str:
    first = name_of(rng, split, FIRST_NAMES)
    return first if rng.random() < 0.2 else f"{first} {name_of(rng, split, LAST_NAMES)}"


def _person(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    name, age, city = _name(rng, split), rng.randrange(18, 95), name_of(rng, split, CITIES)
    work, company = job(rng, split), name_of(rng, split, COMPANIES)
    a_job = f"{'an' if work[0] in 'aeiou' else 'a'} {work}"
    forms = (
        (f"{name} is {age} years old and lives in {city}.", "name age city"),
        (f"{name}, {age}, lives in {city}.", "name age city"),
        (f"{name}, {age}, {city}", "name age city"),
        (f"My neighbour {name} moved to {city} and just turned {age}.", "name age city"),
        (f"I am {name}, {age} years old, from {city}.", "name age city"),
        (f"In {city} lives {name}, aged {age}.", "name age city"),
        (f"{age}-year-old {name} comes from {city}.", "name age city"),
        (f"{name} works as {a_job} in {city}.", "name city job"),
        (f"{name} is {a_job} from {city}.", "name city job"),
        (f"{name} is {a_job} at {company}.", "name job company"),
        (f"{name} joined {company} as {a_job}.", "name job company"),
        (f"{name} is {age} and works as {a_job}.", "name age job"),
        (f"{name} ({age}) is {a_job} in {city}.", "name age city job"),
        (f"{name} is {age} years old, lives in {city} and works as {a_job}.", "name age city job"),
        (f"{name} from {city} is {age} years old and works for {company} as {a_job}.", "name age city job company"),
        (f"Meet {name}, {a_job} at {company} in {city}.", "name city job company"),
        (f"{name} lives in {city}.", "name city"),
        (f"{name} is {age} years old.", "name age"),
        (f"name: {name}, age: {age}, city: {city}", "name age city"),
        (f"The {work} {name} is {age} and lives in {city}.", "name age city job"),
    )
    sentence, keys = rng.choice(forms)
    facts: dict[str, object] = {"name": name, "age": age, "city": city, "job": work, "company": company}
    return sentence, {key: facts[key] for key in keys.split()}


def _order(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    name, item, city = _name(rng, split), product(rng, split), name_of(rng, split, CITIES)
    quantity = rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 10, 12, rng.randrange(2, 100)))
    price: float | int = rng.choice(
        (rng.randrange(2, 500), rng.randrange(200, 30000) / 100, rng.randrange(1, 99) + 0.99)
    )
    if quantity == 1:
        things = f"{rng.choice(('1', 'one', 'an' if item[0] in 'aeiou' else 'a'))} {item}"
    else:
        words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "twelve"}
        count = words[quantity] if quantity in words and rng.random() < 0.3 else str(quantity)
        item = plural(item)
        things = f"{count} {item}"
    cost = rng.choice((f"${price}", f"{price} dollars", f"{price} euros", f"${price}", f"{price} USD"))
    forms = (
        (f"{name} ordered {things} for {cost}.", "customer item quantity price"),
        (f"{name} bought {things} at {cost}.", "customer item quantity price"),
        (f"{name} wants {things}.", "customer item quantity"),
        (f"{name} ordered {things} to {city}.", "customer item quantity city"),
        (f"Ship {things} to {name} in {city}.", "customer item quantity city"),
        (f"Order from {name}: {things}, {cost}.", "customer item quantity price"),
        (f"{name} paid {cost} for {things}.", "customer item quantity price"),
        (f"{name} from {city} ordered {things} for {cost}.", "customer item quantity price city"),
        (f"Please send {things} to {name}, {city}. Total {cost}.", "customer item quantity price city"),
        (f"{things} sold to {name} for {cost}.", "customer item quantity price"),
        (f"For {cost}, {name} purchased {things}.", "customer item quantity price"),
    )
    sentence, keys = rng.choice(forms)
    facts: dict[str, object] = {"customer": name, "item": item, "quantity": quantity, "price": price, "city": city}
    return sentence, {key: facts[key] for key in keys.split()}
