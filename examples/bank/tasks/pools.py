"""Names and things in the demo tasks, split so that held-out rows share none of them with training.

`split_of(word)` assigns a word to a split, whatever list it is in; about a quarter is held out. Lists alone are not
enough: an adapter that sees 66 cities memorises the 66 cities, and writes "Rottemart" for Rotterdam. Half of the names
in training are therefore invented on the fly, so that only copying works.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Literal

Split = Literal["train", "heldout"]

_SALT = 169  # chosen so that both splits get a fair share of every list here and in the tasks


def entries(text: str) -> list[str]:
    """The entries of a list separated by `|` and line breaks."""
    return [entry for line in text.split("\n") for entry in line.split("|") if entry]


FIRST_NAMES = """Ada Ben Chloe Dmitri Elena Farid Grace Hugo Ines Jonas Keiko Liam Mona Nadia Oscar Priya Quentin Rosa
Samir Tara Umar Vera Wendy Xavier Yuki Zoe Aaron Bella Carlos Daria Emil Fiona Gustav Hana Ivan Julia Karim Lena
Marco Nina Olga Pablo Rachel Stefan Tomas Ursula Victor Willa Yara Zane Amir Brigitte Cedric Diana Ethan Freya
George Helga Igor Jasmine Kurt Laila Miguel Noor Otto Petra Rafael Sofia Theo Ulla Viktor Wim Anna John Mary Peter
Sarah David Emma Lucas Maria Alex Robert Linda James Susan Thomas Karen Daniel Laura Kevin Megan""".split()

LAST_NAMES = """Brook Castillo Dawson Eriksen Fischer Grant Haddad Ito Jansen Kovacs Lindgren Moreau Novak Okafor Patel
Quinn Rossi Sato Torres Ullman Vargas Weber Xu Young Zhang Abbott Becker Carver Duarte Ellis Ferrari Gomez Holm
Ivanov Jensen Keller Larsen Mbeki Nolan Olsen Pereira Ramos Schmidt Tanaka Underwood Visser Walsh Yamada Zimmer
Archer Baptiste Chen Dubois Evans Flores Graham Hughes Iqbal Johansson Khan Lopez Murphy Nakamura Owens Park Reyes
Silva Turner Vogel Wagner Smith Miller Brown Jones Davis Wilson Taylor Clark""".split()

CITIES = entries("""
Leeds|Oslo|Lisbon|Nairobi|Chicago|Osaka|Prague|Lyon|Toronto|Bergen|Madrid|Dublin|Mumbai|Boston|Vienna|Hamburg
Seville|Austin|Krakow|Helsinki|Lima|Cairo|Denver|Porto|Bristol|Zurich|Havana|Seoul|Geneva|Turin|Glasgow|Miami
Ghent|Naples|Sydney|Perth|Quito|Riga|Tunis|Valencia|Warsaw|York|Athens|Berlin|Cardiff|Dakar|Essen|Florence|Graz
Houston|Istanbul|Jakarta|Kyoto|London|Malmo|New York|Ottawa|Paris|Rome|San Diego|Tokyo|Utrecht|Venice|Cape Town
Accra|Basel|Calgary|Delhi|Edinburgh|Frankfurt|Goa|Hanoi|Los Angeles|Munich|Montreal|Nice|Bogota|Santiago|Tallinn
Zagreb|Seattle|Dallas|Leipzig|Rotterdam|Bangkok|Manila
""")

PRODUCTS = entries("""
pen|book|chair|table|spoon|fork|plate|bowl|glass|bottle|hat|scarf|glove|sock|shirt|dress|belt|ring|watch|bracelet
necklace|wallet|purse|bag|basket|box|bucket|broom|mop|sponge|soap|shampoo|towel|brush|comb|bed|sofa|desk|shelf|carpet
curtain|lamp|bulb|clock|radio|television|phone|laptop|monitor|mouse|charger|battery|cable|drone|scooter|bicycle
skateboard
football|tennis racket|golf club|fishing rod|kayak|surfboard|rope|hammer|saw|wrench|screwdriver|nail|screw|shovel
rake
wheelbarrow|flower|rose bush|apple tree|seed packet|cactus|fern|cake|cookie|muffin|sandwich|burger|taco|bagel|donut
melon
banana|orange|lemon|tomato|potato|onion|cheese wheel|sausage|coffee bean bag|tea tin|honey jar|toy car|doll|teddy bear
kite
drum kit|violin|flute|trumpet|harmonica|keyboard stand|poster|painting|vase|statue|postcard|envelope|stapler|ruler
eraser
desk lamp|coffee grinder|notebook|water bottle|office chair|yoga mat|wall clock|backpack|keyboard|teapot
garden hose|rain jacket|bookcase|blender|phone case|mirror|toaster|blanket|headset|monitor stand|bike helmet
candle|frying pan|tent|wool scarf|travel mug|printer|drill|pillow|guitar strap|paint set|ladder|webcam
sofa cover|running shoes|salad bowl|flashlight|router|mouse pad|kettle|umbrella|hammock|cutting board|puzzle
sleeping bag|speaker|rug|bar stool|tripod|hiking boots|plant pot|suitcase|vacuum cleaner|alarm clock
laptop sleeve|board game|bath towel|charging cable|picture frame|lunch box|mixing bowl|tablet|microphone|razor
heater|fan|camera|jacket|wireless mouse|steel pan|red scarf|oak table|pocket knife|baby monitor
""")

COMPANIES = entries("""
Acme|Northwind|Bluepeak|Solaris Labs|Greenfield|Orbit Systems|Harbor Foods|Pinewood|Redstone|Quantum Tools
Silverline|Maple Bank|Vertex|Cloudbridge|Ironworks|Lumen Health|Oakridge|Sunrise Media|Delta Freight
Everest Software|Fjord Energy|Granite Capital|Helix|Inkwell Press|Juniper Hotels|Kestrel|Lighthouse|Meridian
Nimbus|Olive Tree|Polaris|Riverbank|Stonegate|Tidewater|Umbra|Zenith
""")

JOBS = entries("""
brewer|weaver|grocer|miller|hunter|ranger|guard|soldier|captain|mayor|senator|minister|priest|monk|student|writer
author|historian|critic|blogger|publisher|trader|investor|analyst|developer|tester|technician|engineer|planner|inspector
supervisor|director|founder|host|nanny|tutor|lecturer|scholar|linguist|philosopher|mathematician|botanist|zoologist
surveyor|builder|mason|tiler|cobbler|shepherd|beekeeper|winemaker|barista|cook|maid|butler|porter|dispatcher|conductor
steward|trainer|referee|swimmer|cyclist|runner|boxer|wrestler|goalkeeper|skipper|lifeguard|logger|trapper|drummer|pianist
guitarist|composer|comedian|magician|clown|model|stylist|hairdresser|dietitian|radiologist|cardiologist|neurologist
anthropologist|archaeologist|meteorologist|sociologist|economics teacher|truck driver|taxi driver|crane driver
nurse aide
nurse|plumber|teacher|software engineer|chef|architect|pilot|accountant|carpenter|lawyer|journalist|dentist
designer|electrician|librarian|mechanic|musician|pharmacist|photographer|scientist|translator|baker|data analyst
product manager|doctor|firefighter|gardener|farmer|waiter|driver|actor|editor|consultant|biologist|tailor
butcher|surgeon|judge|sailor|painter|cashier|welder|barber|florist|economist|geologist|detective|professor
secretary|clerk|bartender|cleaner|coach|chemist|poet|novelist|violinist|singer|dancer|plasterer|roofer|miner
fisherman|diplomat|programmer|web developer|sales manager|project manager|bus driver|police officer|paramedic
midwife|vet|zookeeper|jeweller|locksmith|optician|recruiter|banker|broker|auditor|statistician|astronomer
physicist|therapist|psychologist|interpreter|janitor|courier|blacksmith|potter|sculptor|illustrator|animator
sound engineer|tour guide|receptionist
""")

NOUNS = """apple anchor arrow basket bell bench bird boat bone bottle branch bread brick bridge brush bucket button
cabin cable cake canal candle canoe cape card carpet cart castle cellar chain chalk cherry circle cliff cloud coat
coin collar comb corner cotton cradle crane cross crown cup curtain deck dial dish ditch dome door drum dust eagle
engine falcon feather fence ferry fiddle flag flame flute fork fountain fox frame garlic gate ginger glass glove goat
grain grape hammer harbor hat hawk hedge helmet hill honey hook horn horse ink iron island ivory jar jewel jungle
kite knee knife knot lace lake lamp lantern leaf lemon letter lever lily linen lion lizard lock log lotus magnet mango
map marble mask meadow medal melon mill mint moss moth mountain mud nail needle nest net nickel nut oak oar olive
onion orange orchid otter oven owl ox paddle palm panel parrot peach pearl pebble pencil pepper piano pigeon pine pipe
planet plum pocket pond poppy pot pump quartz quilt rabbit raft rail raven reef ribbon ring river robe rocket roof
root rope rose saddle sail salt sand scale screw seed shell shelf ship shoe silk skate sky slate snake soap sock spark
spider spoon spring stamp star steam stone storm straw sugar swan sword table tail thread thumb tiger tile timber
toast torch tower trail tray trout trumpet tunnel turtle valley vase velvet vine violet walnut wave wax whale wheat
wheel whistle willow wing wire wolf wood wrench yard zebra""".split()

MAKERS = (
    "maker|dealer|inspector|collector|trainer|designer|seller|restorer|technician|researcher|operator|manager".split(
        "|"
    )
)

_SYLLABLES = """ba bel bor bra cal cor da del dor dra el en fa fer fin ga gal gor ha hal hel in jo ka kar kel kra la lan
len lo lor ma mar mel mi mon na nor o or pa per pol ra ram ren ri ro sa sel shi sol ta tal ter tor tra u ul va vel vin
wa wen wil ya yor za zel""".split()
_ENDINGS = "ra na ton berg ville dal sen ski mann ley ford ia is us o a ez ov ham port stad ek in burg".split()


def split_of(word: str) -> Split:
    """The split that may use `word`, ignoring case."""
    return "heldout" if zlib.crc32(f"{_SALT}{word.lower()}".encode()) % 4 == 0 else "train"


def pool(split: Split, words: Sequence[str]) -> Sequence[str]:
    """Those of `words` that rows of `split` may use."""
    return _pool(split, tuple(words))


@cache
def _pool(split: Split, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if split_of(word) == split)


def belongs(split: Split, answer: str) -> bool:
    """Whether an answer made only of numbers (dates, times) belongs to `split`.

    Single values cannot be split, since every split needs all hours and months; complete answers can.
    """
    return (zlib.crc32(answer.encode()) % 6 == 0) == (split == "heldout")


def invented(rng: random.Random, split: Split) -> str:
    """An invented name that belongs to `split`."""
    while True:
        name = "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 1, 2)))) + rng.choice(_ENDINGS)
        if len(name) > 3 and split_of(name) == split:
            return name.capitalize()


def name_of(rng: random.Random, split: Split, words: Sequence[str]) -> str:
    """One of `words`; in training, half the time an invented name instead."""
    if split == "train" and rng.random() < 0.5:
        return invented(rng, split)
    return rng.choice(pool(split, words))


def noun(rng: random.Random, split: Split) -> str:
    """An everyday word that has no role in any task."""
    return rng.choice(pool(split, NOUNS))


def job(rng: random.Random, split: Split) -> str:
    """A job; in training also a compound of two words, or a word that is not a job."""
    draw = rng.random() if split == "train" else 1.0
    if draw < 0.3:
        return f"{noun(rng, split)} {rng.choice(MAKERS)}"
    if draw < 0.5:
        return noun(rng, split)
    return rng.choice(pool(split, JOBS))


def product(rng: random.Random, split: Split) -> str:
    """A thing to buy; in training, half the time one or two arbitrary nouns."""
    if split == "train" and rng.random() < 0.5:
        return noun(rng, split) if rng.random() < 0.5 else f"{noun(rng, split)} {noun(rng, split)}"
    return rng.choice(pool(split, PRODUCTS))


def plural(thing: str) -> str:
    """`box` -> `boxes`, `knife` -> `knives`; words that end in s stay the same."""
    if thing.endswith("s"):
        return thing
    if thing.endswith(("x", "sh", "ch")):
        return thing + "es"
    return thing[:-2] + "ves" if thing.endswith("ife") else thing + "s"
