"""Everyday requests that fit no adapter, made from frames and topics: what people ask an assistant for.

A router must have seen what it is to refuse. These are written out here, so that training needs no data of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def _entries(block: str) -> tuple[str, ...]:
    return tuple(entry for line in block.split("\n") for entry in line.split("|") if entry)


_THINGS = _entries("""
black holes|the roman empire|photosynthesis|jazz|sourdough bread|chess|the french revolution|volcanoes|my cat
tomato plants|a leaking tap|the moon landing|electric cars|bitcoin|vaccines|shakespeare|the solar system|penguins|yoga
marathons|an old bicycle|a job interview|my landlord|wedding speeches|climate change|the stock market|a cover letter
guitar chords|sleep|headaches|back pain|anxiety|green tea|vitamin d|running shoes|hiking boots|camping|the olympics
football|basketball|baseball|the super bowl|cricket|tennis|golf|formula one|boxing|hockey|swimming|gardening|roses
houseplants|compost|bees|spiders|snakes|sharks|whales|dinosaurs|elephants|parrots|hamsters|goldfish|horses|dogs
puppies|wolves|owls|mosquitoes|earthquakes|hurricanes|tornadoes|glaciers|rainbows|tides|the ozone layer|fossils
diamonds|gold|plastic|glass|steel|concrete|nuclear power|wind turbines|solar panels|batteries|magnets|lasers
microwaves|radio|satellites|rockets|mars|saturn|comets|galaxies|relativity|gravity|entropy|atoms|acids|enzymes|cells
dna|viruses|bacteria|blood pressure|the heart|the brain|cholesterol|diabetes|allergies|asthma|migraines|insomnia
pregnancy|newborn babies|toddlers|teenagers|homework|algebra|fractions|calculus|geometry|statistics|probability
prime numbers|infinity|logic|philosophy|stoicism|buddhism|christmas|easter|halloween|thanksgiving|birthdays|funerals
marriage|divorce|dating|friendship|loneliness|grief|happiness|dreams|memory|habits|procrastination|public speaking
leadership|marketing|branding|startups|inflation|interest rates|taxes|pensions|the economy|unemployment|globalization
democracy|elections|the constitution|human rights|world war two|the cold war|vikings|the aztecs|ancient egypt|pyramids
castles|samurai|pirates|knights|the titanic|the great wall|the eiffel tower|museums|opera|ballet|painting|sculpture
photography|cinema|film noir|anime|comics|poetry|novels|grammar|spelling|punctuation|latin|japanese|russian
sign language|accents|slang|proverbs|riddles|crosswords|sudoku|poker|video games|board games|lego|magic tricks
juggling|knitting|sewing|pottery|woodworking|furniture|paint|wallpaper|carpets|plumbing|electricity|roofs|insulation
windows|ladders|lawn mowers|washing machines|dishwashers|vacuum cleaners|coffee machines|knives|cast iron pans
pizza dough|pasta|sushi|curry|tacos|chocolate|ice cream|cheese|wine|beer|whisky|coffee|mushrooms|avocados|potatoes
rice|eggs|tofu|honey|garlic|linux|windows updates|printers|wifi routers|keyboards|monitors|laptops|smartphones|cameras
drones|3d printers|robots|machine learning|neural networks|databases|spreadsheets|python|javascript|html|css|recursion
sorting algorithms|compilers|encryption|passwords|hackers|spam|social media|podcasts|newspapers|libraries|universities
scholarships|kindergarten|teachers|firefighters|doctors|lawyers|farmers|truckers|sailors|astronauts|soldiers
politicians|kings and queens|celebrities|musicians|trains|ships|bridges|tunnels|highways|bicycles|motorcycles|tires
brakes|engines|antarctica|the sahara|the amazon|iceland|australia|brazil|nigeria|india|china|korea|france|italy|greece
egypt|peru|mexico|canada|texas|new york|london|tokyo|berlin
""")
_PEOPLE = _entries("""
my mom|my dad|my boss|my sister|my brother|my neighbor|my teacher|my best friend|my grandmother|my girlfriend
my husband|a five year old|a beginner|a colleague|an old friend|my kids|the mayor|my professor|a stranger|my roommate
""")
_FRAMES = _entries("""
what is THING|what are the basics of THING|explain THING|explain THING to PERSON|how does one learn about THING
tell me about THING|who invented THING|when did THING first appear|why do people like THING
why are some people afraid of THING|is THING bad for you|what is the history of THING|where do THING come from
how many kinds of THING are there|what's the best book about THING|write a poem about THING
write a short story about THING and PERSON|write an essay on THING|write a song about THING|write a haiku about THING
give me ideas for a blog post about THING|give me five facts about THING|tell me a joke about THING
make up a riddle about THING|compare THING and THING|what's the difference between THING and THING
which is older, THING or THING|are THING and THING related|what does PERSON need to know about THING
how do i explain THING to PERSON|write a letter to PERSON about THING|draft an email to PERSON about THING
summarize this article about THING|recommend a documentary about THING|what do experts say about THING
what's a good gift for PERSON|how do i get better at THING|how do i fix THING|how do i clean THING
how do i choose THING|how much do THING cost|how old is THING|should PERSON worry about THING
is it true that THING cause cancer|what would happen without THING|who is famous for THING
what's the biggest myth about THING|what's the science behind THING|can you debate me on THING
write a slogan for THING|name a company that makes THING|what do you think about THING|do you like THING
i am really into THING lately|PERSON keeps talking about THING|i had a dream about THING
i don't understand THING at all|help me study THING for my exam|quiz me on THING|give me a lesson plan about THING
what is the future of THING|what movie has THING in it|is there a museum of THING|what color are THING
how big are THING|how long do THING last|how dangerous are THING|do THING exist in nature|where can i see THING
who was the first person to study THING|why is THING so popular|why does PERSON hate THING
roleplay as someone who loves THING|pretend you are an expert on THING
write a dialogue between PERSON and PERSON about THING|fix the grammar: PERSON like THING very much
rewrite this sentence: THING is good|what rhymes with THING|what's another word for THING
what is the scientific name of THING|how is THING made|how was THING discovered|what are the pros and cons of THING
is THING worth it|how did THING change the world|what is the most expensive kind of THING
what does the law say about THING|can PERSON live without THING|thanks, that helped a lot|thank you|ok great
never mind|good morning|good night|hello there|how are you today|you are wrong about THING|are you a robot
who made you|what can you do|tell me a story|i'm bored|make me laugh|i feel sad today|can you keep a secret
do you have feelings|summarize this paragraph: THING were discussed at length, and everybody agreed
shorten this text: PERSON wrote a long letter about THING|rewrite this in a formal tone: PERSON really likes THING
proofread: PERSON have went to see THING|make this sound friendlier: send it now
translate this into spanish: THING are beautiful|how do you say THING in italian|what does the word THING mean
spell THING|use THING in a sentence|list the oceans|list ten kinds of THING|name three famous people who like THING
rank THING by size|give me a table of THING and prices|what is the square root of 144|how many feet are in a mile
solve x + 3 = 10|what is 15 percent of 80|is 91 a prime number|write a python function that counts THING
explain this error message about THING|how do i center a div|what does a compiler do
what is the difference between tcp and udp|convert this recipe for THING to metric|what should i cook with THING
best restaurant for THING|plan a three day trip to see THING|what should i pack for THING
which country is best for THING|how far is it to the moon|roleplay as a detective
pretend to be PERSON and talk about THING|act as an interviewer who asks about THING|let's play twenty questions
give me a workout for THING|how many calories are in THING|what helps against THING|is THING healthy
can i mix THING and THING|who won the match yesterday|what happened in 1969|who is the president of france
what is the capital of peru|when does summer start|draft a tweet about THING|write a headline for THING
write a product description for THING|invent a name for a shop that sells THING|write a toast for PERSON
apologize to PERSON for me|what should i give PERSON for a birthday|how do i tell PERSON the truth
what day is it tomorrow in history|why is the sky blue|do animals dream|what is the meaning of life
is there life on mars
""")
_OPENINGS = _entries("please|can you|could you|hey|hi,|so|ok|um|quick question:|i was wondering,|just curious,|help!")
_CLOSINGS = ("?", "?", "?", ".", "!", " please", " thanks", " in two sentences", " in simple terms", " today")


COUNT = 8000
"""Requests that a router is trained on."""
_HELD_BACK = 6  # every sixth frame is kept from the training, so that what a router refuses can be measured


def requests(count: int, *, held_back: bool = False) -> list[str]:
    """Different requests, at most `count`, always the same ones; in other frames if they are to measure by."""
    frames = [frame for n, frame in enumerate(_FRAMES) if (n % _HELD_BACK == 0) == held_back]
    rng = Random(int(held_back))
    return list(dict.fromkeys(_request(frames, rng) for _ in range(count)))


def _request(frames: Sequence[str], rng: Random) -> str:
    text = rng.choice(frames)
    while "THING" in text:
        text = text.replace("THING", rng.choice(_THINGS), 1)
    while "PERSON" in text:
        text = text.replace("PERSON", rng.choice(_PEOPLE), 1)
    if rng.random() < 0.5:
        text = f"{rng.choice(_OPENINGS)} {text}"
    if rng.random() < 0.5:
        text += rng.choice(_CLOSINGS)
    return text[0].upper() + text[1:] if rng.random() < 0.3 else text
