"""A question about one table to one SQL query. The prompt lists the columns; text is compared with `=` and quoted with
single quotes."""

from __future__ import annotations

import random

from examples.bank.tasks.phrasing import loosen
from examples.bank.tasks.pools import CITIES, FIRST_NAMES, Split, name_of, noun, plural, pool

INSTRUCTIONS = (
    "Write a SQL query", "SQL", "sql query for", "Translate to SQL", "Turn the question into SQL",
    "Generate SQL", "Answer with one SQL query", "SQL only", "What is the SQL for this", "Convert to SQL",
    "Write the query", "Give me the SQL", "text to sql", "Query the table", "select statement for",
)  # fmt: skip

# table: numeric columns | text columns
TABLES = """users: age, score | name, city, country
orders: quantity, total, price | status, customer, city
products: price, stock, weight | name, category, color
employees: salary, age, bonus | name, department, city
students: grade, age, credits | name, major, school
books: pages, year, price | title, author, genre
movies: year, rating, length | title, director, genre
flights: distance, price, delay | airline, origin, destination
hotels: stars, price, rooms | name, city, country
cars: year, mileage, price | brand, model, color
cities: population, area | name, country, mayor
invoices: amount, tax | client, status, currency
players: goals, age, height | name, team, position
songs: length, plays, year | title, artist, album
patients: age, weight, height | name, doctor, ward
courses: credits, hours | title, teacher, room
accounts: balance, age | owner, bank, type
houses: rooms, price, area | street, city, owner
tickets: price, seat | event, status, buyer
recipes: calories, minutes | name, cuisine, chef
dogs: age, weight | name, breed, owner
shops: revenue, staff | name, street, city
trains: speed, seats | name, line, country
visits: duration, cost | visitor, city, reason
payments: amount, fee | sender, method, status
animals: age, weight | species, name, zoo
projects: budget, hours | title, manager, status
rivers: length, depth | name, country, source
phones: price, memory, storage | brand, model, color
games: players, price, year | title, genre, studio
planes: seats, range | model, airline, maker
members: points, age | name, level, city
sales: amount, units | region, seller, product
events: visitors, price | title, venue, city
artists: age, albums | name, genre, label
wines: year, price, rating | name, grape, region
loans: amount, rate, months | client, bank, status
customers: age, spent, visits | name, city, email
teams: wins, losses, points | name, coach, city
schools: pupils, teachers | name, city, principal""".splitlines()

VALUES = {
    "status": "open|paid|pending|shipped|closed|cancelled|late|done|active|new|failed|returned",
    "color": "red|blue|green|black|white|silver|yellow|grey|brown|orange|purple|gold",
    "department": "sales|marketing|finance|support|engineering|legal|research|design",
    "genre": "drama|comedy|horror|jazz|rock|fantasy|history|thriller|romance|poetry|pop|science fiction",
    "category": "toys|garden|kitchen|sports|office|music|clothing|electronics",
    "country": "France|Japan|Brazil|Norway|Kenya|Canada|Italy|Chile|India|Spain|Germany|Mexico|Egypt|Poland|"
    "Peru|Sweden",
    "brand": "Volvo|Toyota|Fiat|Nokia|Samsung|Ford|Honda|Sony|BMW|Apple|Mazda|Audi",
    "breed": "poodle|beagle|terrier|boxer|collie|husky|pug|bulldog",
    "major": "physics|history|biology|economics|art|chemistry|music|law",
    "team": "Tigers|Eagles|Rovers|United|Sharks|Lions|Bears|Wolves",
}


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A question with its table, and the query."""
    table, numeric, textual = _table(rng, split)
    if rng.random() < 0.35:
        numeric, textual = rng.sample(numeric, max(1, len(numeric) - 1)), rng.sample(textual, len(textual) - 1)
    maker = rng.choices((_count, _select, _top, _aggregate, _group, _all), weights=(4, 6, 3, 4, 2.5, 1))[0]
    question, query = maker(rng, split, table, numeric, textual)
    if rng.random() < 0.7:
        question = question[0].upper() + question[1:]
    listed = (["id"] if rng.random() < 0.6 else []) + rng.choice((textual + numeric, numeric + textual))
    return f"{loosen(rng, question)}\n{table}({', '.join(listed)})", query + ";"


def frame(rng: random.Random, text: str) -> str:
    """Wrap a question and, on its second line, the table it is about in a prompt."""
    question, schema = text.rsplit("\n", 1)
    table, _, names = schema.removesuffix(")").partition("(")
    return _framed(rng, table, names, question)


def _table(rng: random.Random, split: Split) -> tuple[str, list[str], list[str]]:
    """A table's name, its numeric and its text columns; in training, half the time composed at random."""
    name, columns = rng.choice(pool(split, TABLES)).split(": ")
    numeric, textual = (part.split(", ") for part in columns.split(" | "))
    if split == "heldout" or rng.random() < 0.5:
        return name, numeric, textual
    others = [table.split(": ")[1].split(" | ") for table in pool(split, TABLES)]
    numbers = sorted({column for other in others for column in other[0].split(", ")})
    texts = sorted({column for other in others for column in other[1].split(", ")} - set(numbers))
    numeric = rng.sample(numbers, rng.choice((1, 2, 3)))
    textual = rng.sample(texts, rng.choice((2, 3))) + [noun(rng, split)] * (rng.random() < 0.3)
    known = {table.split(":")[0] for table in TABLES}  # of either split
    while (made_up := plural(noun(rng, split))) in known:
        pass
    return made_up, numeric, textual


def _framed(rng: random.Random, table: str, names: str, question: str) -> str:
    schema = rng.choice((
        f"Table {table}({names})", f"table {table} ({names})", f"{table}({names})", f"Table {table}: {names}",
        f"Schema: {table}({names})", f"Columns of {table}: {names}", f"CREATE TABLE {table} ({names});",
        f"Given the table {table} with columns {names}",
    ))  # fmt: skip
    instruction = rng.choice(INSTRUCTIONS)
    instruction = instruction.lower() if rng.random() < 0.35 else instruction
    return rng.choice((
        f"{schema}. {question}", f"{schema}\n{question}", f"{schema}\nQuestion: {question}",
        f"{instruction}: {question} {schema}", f"{instruction}.\n{schema}\n{question}",
        f"{schema}\n{instruction}: {question}",
        f"{question}\n{schema}", f"{instruction}\n\n{schema}\nQ: {question}", f"{schema}. {instruction}: {question}",
        f"{schema}. {question} {instruction}.",
    ))  # fmt: skip


def _value(rng: random.Random, split: Split, column: str) -> str:
    if column in VALUES and rng.random() < 0.7:
        return rng.choice(pool(split, VALUES[column].split("|")))
    if split == "train" and rng.random() < 0.3:
        return rng.choice((noun(rng, split), noun(rng, split).capitalize()))
    return name_of(rng, split, rng.choice((CITIES, FIRST_NAMES)))


def _condition(rng: random.Random, split: Split, numeric: list[str], textual: list[str]) -> tuple[str, str]:
    """A condition in words that can follow `users`, and its WHERE expression."""
    if rng.random() < 0.45:
        column = rng.choice(textual)
        value = _value(rng, split, column)
        words = (f"where {column} is {value}", f"with {column} {value}", f"whose {column} is {value}",
                 f"with {column} = {value}", f"having {column} '{value}'")  # fmt: skip
        return rng.choice(words), f"{column} = '{value}'"
    column, number = (
        rng.choice(numeric),
        rng.choice((rng.randrange(1, 100), rng.randrange(1, 50) * 10, rng.randrange(1, 30) * 100)),
    )
    kinds = (
        (">", ("with {c} over {n}", "with {c} above {n}", "with {c} greater than {n}", "where {c} is more than {n}",
               "whose {c} is over {n}", "with more than {n} {c}", "where {c} > {n}")),
        ("<", ("with {c} under {n}", "with {c} below {n}", "with {c} less than {n}", "where {c} is smaller than {n}",
               "whose {c} is below {n}", "where {c} < {n}")),
        (">=", ("with {c} of at least {n}", "where {c} is at least {n}", "with at least {n} {c}")),
        ("<=", ("with {c} of at most {n}", "where {c} is at most {n}")),
        ("=", ("with {c} equal to {n}", "where {c} is {n}", "with {c} {n}", "whose {c} is exactly {n}")),
    )  # fmt: skip
    sign, words = rng.choices(kinds, weights=(4, 4, 1.5, 1.5, 1.5))[0]
    return rng.choice(words).format(c=column, n=number), f"{column} {sign} {number}"


def _where(rng: random.Random, split: Split, numeric: list[str], textual: list[str], likely: float) -> tuple[str, str]:
    """Nothing, one condition, or two joined by `and`: as words and as SQL, each with a leading space."""
    if rng.random() > likely:
        return "", ""
    words, clause = _condition(rng, split, numeric, textual)
    if rng.random() < 0.15:
        more, second = _condition(rng, split, numeric, textual)
        if second.split()[0] != clause.split()[0]:
            return f" {words} and {more}", f" WHERE {clause} AND {second}"
    return f" {words}", f" WHERE {clause}"


def _count(rng: random.Random, split: Split, table: str, numeric: list[str], textual: list[str]) -> tuple[str, str]:
    if rng.random() < 0.15:
        column = rng.choice(textual)
        return (
            rng.choice((f"how many different {column} values are in {table}?",
                        f"count the distinct {column} in {table}.",
                        f"how many distinct {column} are there in {table}?")),
            f"SELECT COUNT(DISTINCT {column}) FROM {table}",
        )  # fmt: skip
    words, where = _where(rng, split, numeric, textual, 0.75)
    forms = (f"how many {table} are there{words}?", f"count the {table}{words}.", f"number of {table}{words}",
             f"how many {table}{words}?", f"count {table}{words}")  # fmt: skip
    return rng.choice(forms), f"SELECT COUNT(*) FROM {table}{where}"


def _select(rng: random.Random, split: Split, table: str, numeric: list[str], textual: list[str]) -> tuple[str, str]:
    words, where = _where(rng, split, numeric, textual, 0.85)
    chosen = rng.sample(textual + numeric, rng.choice((1, 1, 1, 2)))
    columns = " and ".join(chosen)
    distinct = len(chosen) == 1 and rng.random() < 0.12
    if distinct:
        forms: tuple[str, ...] = (
            f"list the distinct {columns} of {table}{words}",
            f"which different {columns} do the {table}{words} have?",
        )
    else:
        forms = (f"show the {columns} of {table}{words}.", f"list the {columns} of all {table}{words}",
        f"get {columns} from {table}{words}",
                 f"what is the {columns} of {table}{words}?", f"{columns} of {table}{words}",
                 f"find the {columns} of {table}{words}.",
                 f"give me the {columns} for {table}{words}")  # fmt: skip
    return rng.choice(forms), f"SELECT {'DISTINCT ' if distinct else ''}{', '.join(chosen)} FROM {table}{where}"


def _top(rng: random.Random, split: Split, table: str, numeric: list[str], textual: list[str]) -> tuple[str, str]:
    by, column = rng.choice(numeric), rng.choice(textual)
    words, where = _where(rng, split, [by], textual, 0.2)
    count = rng.choice((1, 2, 3, 3, 5, 5, 10, 10, 20, rng.randrange(2, 50)))
    if rng.random() < 0.25:
        down = rng.random() < 0.5
        forms = (f"list the {column} of {table}{words} sorted by {by} {'descending' if down else 'ascending'}",
                 f"{column} of {table}{words} ordered by {by} "
                 f"{'from high to low' if down else 'from low to high'}")  # fmt: skip
        return rng.choice(forms), f"SELECT {column} FROM {table}{where} ORDER BY {by} {'DESC' if down else 'ASC'}"
    down = rng.random() < 0.65
    extreme = rng.choice(("highest", "largest") if down else ("lowest", "smallest"))
    if count == 1:
        forms = (
            f"which of the {table}{words} has the {extreme} {by}? show the {column}",
            f"{column} of the {table}{words} with the {extreme} {by}",
        )
    else:
        forms = (f"{column} of the {count} {table}{words} with the {extreme} {by}",
        f"show the {column} of the {count} {table}{words} with the {extreme} {by}.",
                 f"{'top' if down else 'bottom'} {count} {table}{words} by {by}, show {column}")  # fmt: skip
    return rng.choice(
        forms
    ), f"SELECT {column} FROM {table}{where} ORDER BY {by} {'DESC' if down else 'ASC'} LIMIT {count}"


_AGGREGATES = {
    "AVG": ("average", "mean"),
    "SUM": ("total", "sum of"),
    "MAX": ("highest", "maximum", "largest"),
    "MIN": ("lowest", "minimum", "smallest"),
}


def _aggregate(rng: random.Random, split: Split, table: str, numeric: list[str], textual: list[str]) -> tuple[str, str]:
    column = rng.choice(numeric)
    words, where = _where(rng, split, numeric, textual, 0.5)
    function = rng.choice(list(_AGGREGATES))
    phrase = rng.choice(_AGGREGATES[function])
    forms = (f"what is the {phrase} {column} of {table}{words}?", f"{phrase} {column} of {table}{words}",
    f"find the {phrase} {column} of all {table}{words}.",
             f"give the {phrase} {column} in {table}{words}")  # fmt: skip
    return rng.choice(forms), f"SELECT {function}({column}) FROM {table}{where}"


def _group(rng: random.Random, split: Split, table: str, numeric: list[str], textual: list[str]) -> tuple[str, str]:
    del split
    by = rng.choice(textual)
    per = rng.choice(("per", "for each", "by", "grouped by"))
    if rng.random() < 0.5:
        words = rng.choice(
            (f"how many {table} {per} {by}?", f"count the {table} {per} {by}.", f"number of {table} {per} {by}")
        )
        return words, f"SELECT {by}, COUNT(*) FROM {table} GROUP BY {by}"
    column, function = rng.choice(numeric), rng.choice(list(_AGGREGATES))
    phrase = rng.choice(_AGGREGATES[function])
    words = rng.choice(
        (f"{phrase} {column} of {table} {per} {by}", f"what is the {phrase} {column} {per} {by} in {table}?")
    )
    return words, f"SELECT {by}, {function}({column}) FROM {table} GROUP BY {by}"


def _all(rng: random.Random, split: Split, table: str, numeric: list[str], textual: list[str]) -> tuple[str, str]:
    words, where = _where(rng, split, numeric, textual, 0.7)
    forms = (
        f"show all {table}{words}.",
        f"list everything in {table}{words}",
        f"get all {table}{words}",
        f"all columns of {table}{words}",
    )
    return rng.choice(forms), f"SELECT * FROM {table}{where}"
