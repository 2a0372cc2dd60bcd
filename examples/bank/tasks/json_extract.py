"""A sentence about a person or an order to one line of JSON with the facts it states, keys in a fixed order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from examples.bank.tasks.phrasing import ask, loosen
from examples.bank.tasks.pools import (
    CITIES,
    COMPANIES,
    FIRST_NAMES,
    LAST_NAMES,
    Split,
    entries,
    job,
    name_of,
    plural,
    pool,
    product,
)

INSTRUCTIONS = (
    "Extract the fields as JSON", "Extract JSON", "Convert to JSON", "Turn this into JSON", "json",
    "Give me JSON for this sentence", "Return the facts as a JSON object", "Parse into JSON", "Make a JSON record",
    "Structured data please", "Pull out the details as JSON", "Extract the entities as JSON", "to json",
    "Represent this as JSON", "Read the text and output JSON", "JSON only", "Extract structured data",
    "Get the key facts in JSON format", "Fill a JSON object from this text", "What are the fields, as JSON",
)  # fmt: skip

# The tokenizer spells a word differently behind a quote than behind a space, so copying into JSON must be learnt
# on many words, not only on many rows.
NAMES = (
    FIRST_NAMES
    + """Abigail Adele Ahmed Aisha Alan Albert Alice Alicia Amelia Amy Andrea Andrew Angela Anthony
Arthur Ashley Astrid Barbara Beatrice Benjamin Bernard Bianca Bob Bonnie Brandon Brian Bruce Camille Carla Caroline
Catherine Celine Charles Charlotte Christian Claire Claudia Colin Connor Cynthia Damian Dean Deborah Dennis Derek Dora
Doris Dylan Eddie Edgar Edith Edward Elias Elliot Emily Eric Erika Esther Eva Evelyn Felix Fernando Florence Frances
Francis Frank Fred Gabriel Gary Gemma Gerald Gina Gloria Gordon Gregory Hannah Harold Harry Heather Hector Helen Henry
Holly Howard Ian Ida Imran Irene Iris Isaac Isabel Jack Jacob Jane Janet Jason Jean Jeffrey Jennifer Jerome Jessica Joan
Joel Jose Joseph Joshua Joyce Judith Justin Kate Keith Kenneth Kim Kyle Larry Laurence Lee Leo Leonard Leslie Lewis Lily
Lisa Louis Louise Lucy Luis Luke Lydia Malik Marcel Margaret Marie Marina Mark Martha Martin Matthew Maurice Max Maya
Melanie Melissa Michael Michelle Mike Milan Molly Monica Nancy Naomi Natalie Nathan Neil Nicholas Nicole Noah Norman
Oliver Pamela Patricia Patrick Paul Paula Pauline Philip Phoebe Ralph Ramon Rebecca Regina Rita Roger Roland Rose Roy
Ruth Ryan Sally Sam Samuel Sandra Sara Scott Sean Sharon Simon Sophie Stanley Stella Stephen Steven Stuart Sylvia Tanya
Teresa Tim Tina Tom Tony Tracy Valerie Vanessa Veronica Vincent Virginia Walter Wayne William Yusuf""".split()
)
SURNAMES = (
    LAST_NAMES
    + """Adams Allen Anderson Armstrong Bailey Baker Barnes Bell Bennett Bishop Black Bond Boyd Bradley
Burke Burns Butler Byrne Campbell Carlson Carpenter Carroll Carter Chapman Coleman Collins Connor Cook Cooper Cox Craig
Crawford Cruz Cunningham Curtis Diaz Dixon Douglas Doyle Duncan Dunn Edwards Farmer Ferguson Field Fletcher Ford Foster
Fox Franklin Freeman Garcia Gardner Gibson Gordon Gray Green Griffin Hall Hamilton Hansen Hanson Harper Harris Harrison
Hart Harvey Hayes Henderson Hernandez Hill Hoffman Holmes Howard Hudson Hunt Hunter Jackson Jacobs James Jenkins Johnson
Johnston Jordan Kaya Kelly Kennedy King Knight Lambert Lane Lawrence Lawson Lee Lewis Long Marshall Martin Martinez
Mason Matthews Meyer Mills Mitchell Moore Morgan Morris Morrison Murray Myers Nelson Newman Nguyen Oliver Palmer Parker
Payne
Perez Perry Peters Phillips Porter Powell Price Ray Reed Reynolds Rice Richards Richardson Riley Rivera Roberts Robinson
Rogers Rose Ross Russell Ryan Sanchez Sanders Scott Shaw Simmons Simpson Singh Snyder Spencer Stewart Stone Sullivan
Thomas Thompson Tucker Walker Wallace Ward Warren Watson Webb Wells West Wheeler White Williams Wood Wright""".split()
)
TOWNS = CITIES + entries("""
Aberdeen|Adelaide|Amsterdam|Antwerp|Atlanta|Auckland|Baltimore|Barcelona|Belfast|Belgrade|Birmingham|Bologna
Bordeaux|Bremen|Brisbane|Brussels|Bucharest|Budapest|Buffalo|Cambridge|Canberra|Casablanca|Charlotte|Chennai
Cleveland|Cologne|Columbus|Copenhagen|Damascus|Dortmund|Dresden|Dubai|Durban|Exeter|Geneva|Genoa|Granada|Hanover
Hong Kong|Honolulu|Indianapolis|Jerusalem|Johannesburg|Kansas City|Karachi|Kiev|Kingston|Lagos|Lausanne|Leicester
Lille|Liverpool|Luxembourg|Malaga|Manchester|Marseille|Melbourne|Memphis|Mexico City|Milan|Minneapolis|Moscow
Nagoya|Nashville|New Orleans|Newcastle|Norwich|Nottingham|Oakland|Oxford|Palermo|Philadelphia|Phoenix|Pittsburgh
Plymouth|Portland|Portsmouth|Pretoria|Reading|Reykjavik|Richmond|Rio de Janeiro|Sacramento|Salzburg|San Francisco
Sao Paulo|Sarajevo|Sheffield|Shanghai|Singapore|Sofia|Southampton|Stockholm|Strasbourg|Stuttgart|Swansea|Taipei
Tampa|Tehran|Tel Aviv|Toulouse|Trieste|Tucson|Vancouver|Verona|Washington|Wellington|Winnipeg|Wuhan
""")
WORDS = """actor adviser agent ankle army artist aunt autumn bandage barrel battle beach beard beer bicycle blade
blood board bomb border bowl boy brain branch breakfast breath brother building bullet bus bush butter cafe camera
camp captain carrot castle cat ceiling cell century chapter cheese chicken child chip chocolate church cigarette
circus city class classroom clay clerk client climate club coach coal coast coffee college colour column comedy
computer concert contract cookie copper corn cottage council country couple cousin cow crab cream cricket crime crop
crowd crystal customer dad danger daughter desert device diamond dictionary dinner doctor document dog dollar
dolphin dragon drawer dream dress drink driver duck ear earth elbow elephant email enemy evening eye fabric face
factory family fan farm father fence festival fever fiction finger fire fish flood floor flour foot forest freezer
friend frog fruit furniture garage garden gas ghost giant gift girl goal goose grandfather grass guest guide guitar
hair hall hand hardware hat head heart heat heel herb hero highway holiday hospital hotel house hunter husband ice
industry insect jacket jail jeans job joke journal juice king kitchen kitten knight lady laundry lawn lawyer leader
leather leg lesson library lip liquid list lunch machine magazine mail mall manager market marriage match meat
medicine metal meter milk mirror missile mobile money monkey moon mother motor mouth movie museum mushroom music
neck neighbor nephew newspaper night noise nose notebook novel nurse ocean office oil opera orchestra package page
pain palace parade parent park party passenger path patient peanut people person pet photo picture pie pill pillow
pin pirate pizza plane plant plastic platform player pocket poem police pool post powder prince prison prize
professor program property puppy queen question radio rain rat recipe record refrigerator report restaurant ribbon
rice road robot rock room route rubber sauce scene school scientist scissors season secretary server shadow sheep
shirt shop shoulder sign signal sister skin smoke snow soldier song soup space speech speed staff stage stair
station stick stomach store story street student studio subject suit summer sun surgery sweater switch tailor tape
taxi tea team telephone temple tennis test theater throat ticket tie tool tooth tourist town toy track trade traffic
train transport travel tree trial trip truck tube twin uncle uniform university vacation vegetable vehicle video
village visitor voice volcano volume waist waiter wall war wardrobe water weapon weather wedding weekend window
winter witch woman worker world writer year""".split()


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """What is to be handled, and its JSON."""
    sentence, facts = (_person if rng.random() < 0.55 else _order)(rng, split)
    return loosen(rng, sentence), json.dumps(facts)


def frame(rng: random.Random, text: str) -> str:
    """The prompt around `text`."""
    return ask(rng, INSTRUCTIONS, text, bare=0.12)


def _name(rng: random.Random, split: Split) -> str:
    first = name_of(rng, split, NAMES)
    return first if rng.random() < 0.2 else f"{first} {name_of(rng, split, SURNAMES)}"


def _plain(rng: random.Random, split: Split, word: Callable[[random.Random, Split], str]) -> str:
    """What `word` says; in training, half the time any word at all: to copy it, nothing need be known about it."""
    return rng.choice(pool(split, WORDS)) if split == "train" and rng.random() < 0.5 else word(rng, split)


def _person(rng: random.Random, split: Split) -> tuple[str, dict[str, object]]:
    name, age, city = _name(rng, split), rng.randrange(18, 95), name_of(rng, split, TOWNS)
    work, company = _plain(rng, split, job), name_of(rng, split, COMPANIES)
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
    name, item, city = _name(rng, split), _plain(rng, split, product), name_of(rng, split, TOWNS)
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
