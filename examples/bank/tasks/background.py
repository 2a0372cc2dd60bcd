"""Prompts that fit no demo adapter: they teach the router when to use the backbone alone.

Questions, chit-chat, poems, explanations, sums, translations, code, advice; among them prompts that use the
adapters' own words (dates, JSON, SQL, orders, reviews, files, schedules) without asking for their task.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.bank.tasks.pools import (
    CITIES,
    FIRST_NAMES,
    JOBS,
    PRODUCTS,
    Split,
    entries,
    pool,
)

TOPICS = entries("""
photosynthesis|gravity|inflation|the French Revolution|black holes|vaccines|the water cycle|plate tectonics
machine learning|quantum computing|democracy|the stock market|evolution|volcanoes|rainbows|the immune system
jazz|the Roman Empire|climate change|supply and demand|electric cars|the internet|dreams|DNA|solar power
philosophy|compound interest|the human heart|tides|bees|chess|meditation|the Renaissance|encryption|blockchain
magnets|sleep|ocean currents|recursion|relational databases|JSON|cron jobs|SQL|regular expressions|Linux
the calendar|time zones|sentiment analysis|customer support|invoices|APIs|cloud computing|Kubernetes
operating systems|earthquakes|glaciers|the moon landing|penicillin|impressionism|opera|cubism|the printing press
steam engines|hydrogen|microwaves|lasers|antibiotics|bread baking|coffee|tea ceremonies|yoga|marathons|sharks
octopuses|whales|elephants|migration of birds|stoicism|existentialism|behavioural economics|game theory
probability|prime numbers|infinity|calculus|statistics|fractals|neural networks|compilers|garbage collection
hash tables|binary search|public transport|urban planning|recycling|nuclear fusion|wind turbines|batteries|GPS
satellites|Mars|comets|the speed of light|relativity|thermodynamics|acids and bases|enzymes|viruses|memory
language acquisition|grammar|poetry|the novel|Shakespeare|mythology|the Olympics|football|cricket|tennis
the United Nations|human rights|taxes|insurance|mortgages|pensions|budgets|the minimum wage
""")
THEMES = entries("""
the sea|autumn|a lost cat|friendship|the night sky|an old lighthouse|rain|a robot who learns to love
the city at dawn|a brave mouse|winter|time|coffee|a dragon|home|the moon|grandmother's kitchen
a long train journey|hope|silence|a forgotten library|spring flowers|a pirate|mountains|loneliness
a magic garden|the last day of school|a talking dog|stars|an astronaut|love|the desert|a violin|an empty house
bread|bicycles|a thunderstorm|a secret door|summer holidays|an old soldier|the wind|a clever fox|dancing|freedom
a broken clock|the first snow|two brothers
""")
COUNTRIES = entries("""
France|Japan|Brazil|Norway|Kenya|Canada|Italy|Chile|India|Spain|Germany|Mexico|Egypt|Poland|Peru|Sweden
Australia|Portugal|Greece|Turkey|Vietnam|Thailand|Argentina|Morocco|Finland|Ireland|Austria|Hungary|Nepal|Cuba
""")
LANGUAGES = "French|Spanish|German|Italian|Portuguese|Dutch|Swedish|Japanese|Latin|Polish|Russian|Turkish".split("|")
PHRASES = entries("""
good morning|where is the train station|I love you|the weather is nice today|see you tomorrow
how much does it cost|I would like a coffee|the cat sleeps on the sofa|my name is Anna|thank you very much
can you help me|I am learning a new language|the book is on the table|we are going to the beach|happy new year
the sky is blue|what time is it|I am hungry|he works in a bank|have a nice weekend|the children play outside
I do not understand|where are you from|the food was very good|it is raining|my brother is a doctor
""")
DISHES = entries("""
pancakes|lasagna|tomato soup|banana bread|sushi|chicken curry|guacamole|apple pie|risotto|hummus|pizza dough
ratatouille|omelette|fried rice|chocolate cake|lentil stew|pesto|tacos|borscht|pad thai|scones|dumplings
""")
SKILLS = entries("""
sleep better|learn the guitar|save money|prepare for an interview|start running|stop procrastinating
make friends in a new city|write a good essay|learn faster|cook for one|grow tomatoes|speak in public
train a puppy|choose a laptop|lose weight|read more books|stay calm under stress|organise my desk
get over a cold|improve my handwriting|take better photos|negotiate a salary|plan a wedding|learn Spanish
remember names|manage my time|write clean code|start a business|raise backyard chickens|fix a leaking tap
paint a wall
""")
UNITS = entries("""
miles|kilometers|pounds|kilos|inches|feet|meters|yards|ounces|grams|liters|gallons|cups|celsius|fahrenheit|acres|hectares
knots|kilowatts|horsepower|bytes|megabytes|seconds|centimeters|stones|pints|joules|calories
""")
KINDS = entries("""
country|animal|city|planet|bird|mountain|language|company|river|island|insect|dog|tree|university|continent|car|computer
dinosaur|desert|bridge|building|number|star|fish|flower|lake|newspaper|museum|ocean|restaurant|book|song|team|train
""")
CHAT = entries("""
hello|hi there|how are you?|good morning|what's up?|thanks for your help|who are you?|what can you do?
tell me a joke|I am bored|good night|are you a robot?|do you like music?|I had a long day|what is your name?
say something nice|you are funny|nice to meet you|can we talk?|what do you think about love?|how old are you?
I feel sad today|do you have feelings?|tell me something interesting|let's play a game|hey|yo|thank you|bye
see you later|what should I do today?|give me some advice|do you dream?|sing me a song|make me laugh
I need a friend|what is the meaning of life?|are you there?|ok|cool|that is great|never mind|sorry|you are wrong
why?|really?|I can't sleep|my cat is sick|I got a new job today|it's my birthday|congratulate me|cheer me up
flip a coin|pick a number between one and ten|who made you?|can you keep a secret?|do you know everything?|help
""")
SUBJECTS = entries("""
the best way to spend a Sunday|moving to a smaller town|learning to drive late in life|a four-day work week
working from home|keeping a diary|adopting an old dog|travelling alone|giving up sugar|living without a phone
reading on paper|cooking every day|school uniforms|zoos|video games for children|space tourism|self-driving cars
universal basic income|online dating|fast fashion|eating meat|city bikes|tipping in restaurants|social media
cash or cards|cats or dogs|tea or coffee|mountains or beaches|early mornings|open offices
""")
FACTS = entries("""
who wrote Don Quixote?|who painted the Mona Lisa?|how many legs does a spider have?|what is the largest ocean?
who invented the telephone?|what is the boiling point of water?|how far is the moon?
what is the tallest mountain?|when did World War II end?|how many continents are there?
what is the chemical symbol for gold?|who discovered America?|what is the fastest animal?
how many bones does a human have?|what language is spoken in Brazil?|who was Napoleon?
what is the smallest country?|why is the sky blue?|what causes thunder?|how do planes fly?|why do cats purr?
what is the longest river?|who wrote Hamlet?|what is a prime number?|how long do elephants live?
why do leaves fall?|who was Marie Curie?|what is the square root of 144?|how many days are in a leap year?
what is the hottest planet?|who was the first person on the moon?|what do pandas eat?|how does a fridge work?
what is the currency of Japan?|why is the sea salty?|how old is the universe?|who composed the Four Seasons?
what is DNA made of?|when was the Eiffel Tower built?|how many strings does a violin have?
what is the opposite of hot?
""")
NEAR = entries("""
what is a database index?|explain what a foreign key is|what does JSON stand for?
why do people use JSON instead of XML?|who invented SQL?|is Linux better than Windows?
what is the history of the crontab?|why is the leap year every four years?
how do I become a customer support agent?|what makes a good product review?
write a polite reply to an angry customer|explain the difference between a join and a union
what is a shell script?|tips for faster shipping in an online shop|why do we have time zones?
who decided that a week has seven days?|what is the difference between a mutex and a semaphore?
how do timers work in electronics?|describe a typical day of a software engineer
what is the best day for a wedding?|write a review of a restaurant you like|summarise the plot of a famous movie
what is a LoRA adapter?|how many weeks are in a year?|what happened on July 4, 1776?
which holidays are in December?|plan my week|make a schedule for studying
write a short story about a lost package|write an apology for a late delivery|how do I write a good bug report?
what is a webhook?|explain two-factor authentication to my grandmother
what is the weather usually like in spring?|why does my computer get slow?|how do light bulbs work?
what is the origin of the word alarm?|write a complaint letter about a noisy neighbour|how do banks make money?
what should I name my playlist?|who is the most famous pianist?|explain currency exchange rates to a child
what is the difference between http and https?|write a poem about a crontab|tell me a joke about SQL
what is positive psychology?|how do critics rate films?|explain what neutral means in politics
describe the colour red|write a Python function that reverses a list|write a haiku about JSON
what is an ISO standard?|what is the ISO organisation?|is a hot dog a sandwich?|what is customer churn?
name three advantages of remote support|what does a plumber do?|how do I choose a good restaurant?
why are receipts printed on thermal paper?|describe how a message travels over the internet
write a birthday message for my sister|compose an email to my landlord about the heating
draft a thank-you note to a teacher|explain grep to a beginner|what are the pros and cons of bash?
when should I use awk?|why is vim so popular?
""")

# {t} topic, {h} theme, {c} country, {l} language, {p} phrase, {d} dish, {s} skill, {u} subject, {n} name, {j} job,
# {i} product, {y} city, {a} and {b} numbers
FORMS = entries("""
Essay: {u}|topic: {t}|story: {h}|poem: {h}|explain: {t}|question: what is {t}?|Recipe: {d}|summary: {t}|idea: {u}
pros and cons: {u}|translate: {p}|Definition: {t}|opinion: {u}|thoughts on {u}?|argue: {u}|For or against {u}?
chat: {u}|title for a novel about {h}|Continue this story: {h} was all she could see|continue: it was about {h}
rephrase: {p}|say it differently: {p}|Write the next line: {p}|I need help to {s}|how can I finally {s}
Convert {a} {m} to {m2}|convert {a} {m} into {m2} please|how many {m} are {a} {m2}?|{a} {m} in {m2}
what is {a} {m} in {m2}?|How do I get from {m} to {m2}?|what is longer, {a} {m} or {b} {m2}?
change {b} {m} to {m2}|{b} {m} to {m2}?|What is the smallest {k}?|what is the largest {k} in {c}?
which {k} is the oldest?|What is the fastest {k}?|name the biggest {k}|what is the most famous {k} of {c}?
how many kinds of {k} are there?|Who discovered the first {k}?|the best {k} ever?|debate {u}: yes or no?
Discuss: {u}|let us debate {t}|start a discussion about {t}|Good night, {n}|good morning {n}!|hello {n}
Is it healthy to {s}?|is it better to {s} or to {s2}?|Should I {s} or {s2}?|how many grams are {a} ounces?
convert {a} celsius to fahrenheit|How tall is {h}?|who is better at chess, a {j} or a {j2}?
recommend {b2} books about {t}|Recommend a movie about {h}|Fix the grammar: {n} go to {y} yesterday
paraphrase: {p}|Write a cover letter for a {j}|Draft a tweet about {u}|write a speech about {t}
Plan a {b2} day trip to {y}|Describe {y} in winter|What does the idiom "{p}" mean?|why do {i}s cost so much?
give me synonyms of {p}|what is the difference between {t} and {t2}?|Compare {c} and {c2}|Name {b2} {i}s
Who would win, {h} or {h2}?|what are the health benefits of {d}?|is {d} healthy?|How long does it take to {s}?
Write a function that sorts a list of {i}s|debug my code about {t}|What are the rules of {t}?
tell me a fun fact about {y}|tell me a joke about a {j}|I am {n} and I love {t}|my name is {n}, nice to meet you
{n} asked me about {t} and I did not know what to say|Let's talk about {t}|let's play a game about {h}
I feel like I should {s}|My neighbour told me about {h}, it was a long story|Explain {t}
explain {t} in simple terms|What is {t}?|Tell me about {t}|why does {t} matter?|Write a short essay about {t}
Summarise the history of {t}|Give me three facts about {t}|how does {t} work?|Explain {t} to a five-year-old
What are the pros and cons of {t}?|I do not understand {t}, help me|What should I read about {t}?
Write a quiz question about {t}|what's the big deal with {t}|Who contributed most to {t}?|Compare {t} and {t2}
what is the link between {t} and {t2}?|Is {t} related to {t2}?|define {t}|Write a poem about {h}
Write a haiku about {h}|Tell me a story about {h}|poem about {h}|a short story with {h} in it
Write a song about {h}|Give me a metaphor for {h}|write a limerick about {h}|Describe {h} in one sentence
Continue the story: once upon a time there was {h}|What does {h} symbolise?|a bedtime story about {h} please
What is the capital of {c}?|Tell me about the food in {c}|What is {c} famous for?|is {c} expensive to visit?
Plan a trip to {c}|How many people live in {c}?|best time to visit {c}|What language do they speak in {c}?
Describe the flag of {c}|who is the president of {c}?|what should I see in {y}?|Tell me about the history of {y}
is {y} a good place to live?|what is the best museum in {y}?|Translate to {l}: {p}|How do you say "{p}" in {l}?
translate "{p}" into {l}|{p} in {l}|Say {p} in {l}|How do I make {d}?|Give me a recipe for {d}|recipe {d}
What goes well with {d}?|What is the origin of {d}?|ingredients for {d}|How can I {s}?|tips to {s}
Give me advice: how do I {s}?|I want to {s}. Where do I start?|what is the first step to {s}?
Make a plan to help me {s}|What do you think about {u}?|Argue for and against {u}|Write a paragraph about {u}
give your opinion on {u}|Is {u} a good idea?|debate: {u}|What is {a} plus {b}?|{a} + {b}|calculate {a} times {b}
{a} * {b}|what is {a} percent of {b}?|What is {b} divided by {a}?|Solve: x + {a} = {b}|Is {a} a prime number?
If I have {a} apples and eat {b2}, how many are left?|what is the square of {a}?|count from {a} to {b}
Write a Python function that adds {a} to a number
write a function in JavaScript that checks if a string is a palindrome|Write an email to {n} about {u}
Write a birthday poem for {n}|what does the name {n} mean?|is {n} a common name?
Write a dialogue between {n} and a {j}|What does a {j} do all day?|how do I become a {j}?
how much does a {j} earn?|what skills does a {j} need?|Write a slogan for a {i}|invent a name for a new {i}
How is a {i} made?|who invented the {i}?|what should I look for when choosing a {i}?|write an ad for a {i}
Give me {b2} synonyms for happy|List {b2} animals that live in {c}|Name {b2} famous people from {c}
List {b2} ideas for a party about {h}|Make up a riddle about {h}|rewrite this more formally: {p}
correct the grammar: {p}|What rhymes with {i}?|Summarise: {t} is important because it changed how people live.
imagine you are a {j}, what would you say about {t}?|act as a {j} and explain {t}|{t}|{h}|{u}
I read about {t} yesterday and liked it|my friend {n} is interested in {t}|tell {n}'s fortune
""")


def row(rng: random.Random, split: Split) -> str:
    """One prompt. Held-out prompts use other forms, topics, names and numbers."""

    def pick(words: Sequence[str]) -> str:
        return rng.choice(pool(split, words))

    draw = rng.random()
    if draw < 0.08:
        text = pick(CHAT)
    elif draw < 0.15:
        text = pick(FACTS)
    elif draw < 0.24:
        text = pick(NEAR)
    else:
        low = rng.randrange(2, 12)
        job = pick([job for job in JOBS if job[0] not in "aeiou"])
        text = pick(FORMS).format(
            t=pick(TOPICS), t2=pick(TOPICS), h=pick(THEMES), h2=pick(THEMES), c=pick(COUNTRIES), c2=pick(COUNTRIES),
            l=pick(LANGUAGES), p=pick(PHRASES), d=pick(DISHES), s=pick(SKILLS), s2=pick(SKILLS), u=pick(SUBJECTS),
            n=pick(FIRST_NAMES), j=job, j2=pick(JOBS), i=pick(PRODUCTS), y=pick(CITIES), k=pick(KINDS),
            m=rng.choice(UNITS), m2=rng.choice(UNITS),
            a=rng.randrange(12, 200), b=rng.randrange(200, 1000), b2=low,
        )  # fmt: skip
    return _vary_typing(rng, text)


def _vary_typing(rng: random.Random, text: str) -> str:
    draw = rng.random()
    if draw < 0.3:
        text = text[0].upper() + text[1:]
    elif draw < 0.55:
        text = text.lower()
    elif draw < 0.58:
        text = text.upper()
    if rng.random() < 0.2:
        text = text.rstrip("?.")
    draw = rng.random()
    if draw < 0.08:
        text = f"please {text}"
    elif draw < 0.14:
        text = f"{rng.choice(('hey, ', 'hi! ', 'can you help? ', 'quick question: ', 'so, '))}{text}"
    elif draw < 0.2:
        text = f"{text}{rng.choice((' please', ' thanks', ' in two sentences', ' briefly', ' for my homework', '!'))}"
    return text
