"""Prompts in the words people use, for the router's training: short, casual, seldom naming what they want.

The other generators describe a task by its instruction. People often leave it out, so the router must know a task by
what is asked. Upper-case words are drawn from the pools below."""

from __future__ import annotations

import random
from collections.abc import Mapping

from examples.bank.tasks.pools import entries

POOLS = {
    "DAY": "monday|tuesday|wednesday|thursday|friday|saturday|sunday|weekdays|workdays|the weekend",
    "TIME": "6am|7:15|half past eight|noon|3 pm|17:45|quarter to ten at night|midnight|9 in the morning|22:30",
    "UNIT": "5 minutes|10 min|quarter of an hour|20 minutes|half hour|2 hours|6 hours|hour|other day|3 days",
    "DATE": "march 3rd 2021|the 5th of june 2019|12/25/2020|7 Nov '98|Feb 29, 2016|1.4.2022|august 14 2005|30/06/1994|"
    "the 1st of may 1987|Sept. 9th, 2030|twelfth of october 2011|jan 2 99",
    "JOB": "the backup|my cleanup script|log rotation|the sync|the report|the health check|the import|the mailer",
    "PERSON": "Marta|Kofi Mensah|my brother|Dr. Lund|Aunt Rosa|Yuki|the landlord|Sam|the whole team|mum|Igor P.",
    "CITY": "Lyon|Nairobi|Austin|Kyoto|Leeds|Quebec|Malmo|Pune|Cork|Bergen|Valencia|Hue",
    "TABLE": "orders(id, customer, total, placed_on)|employees(name, dept, salary, hired)|songs(title, artist, plays)|"
    "visits(patient, doctor, day)|products(sku, price, stock)|games(home, away, score)|loans(book, member, due)",
    "WHAT": "the newest ten|how many there are|the average per group|everything from last year|the top 3|duplicates",
    "FILE": "notes.txt|*.log|the downloads folder|/var/log|photos|report.csv|a big tarball|node_modules|/etc/hosts",
    "SONG": "some jazz|the new Adele|my running playlist|lofi beats|Bohemian Rhapsody|anything by Rosalia",
    "ITEM": "the hotel|this blender|last night's show|their support|the phone|the lasagna|my new boots|the course",
    "TROUBLE": "i was charged twice this month|the app crashes when i open settings|cant log in since the update|"
    "my parcel never came|where do i change my address|the export button does nothing|i want my money back|"
    "two factor code never arrives|please cancel my plan|site is down for everyone here|how do i add a user|"
    "the invoice has the wrong company name",
}

SPOKEN: Mapping[str, list[str]] = {
    "cron": entries("""
run JOB every UNIT|JOB should go off at TIME on DAY|i want JOB to happen every DAY, TIME|start JOB each DAY at TIME
every UNIT please, for JOB|how do i schedule JOB for TIME daily|stars for: first of every month, TIME
TIME every DAY, cron|what do i put in my crontab so JOB runs at TIME|once a week on DAY, TIME sharp
twice a day, TIME and TIME|cron for every UNIT|need JOB to kick in at TIME but only on DAY
only in january, the 1st, TIME|the five fields for every UNIT between 9 and 5
on the 15th and the last day of the month at TIME|JOB: DAY + DAY, TIME|repeat every UNIT, starting on the hour
make JOB run at TIME except on DAY|schedule it nightly at TIME|every DAY in december at TIME run JOB|hourly on DAY
"""),
    "iso_date": entries("""
DATE|DATE in year-month-day|DATE with dashes, year first|how is DATE written the iso way|DATE -> iso
DATE but sortable please|put DATE into yyyy-mm-dd|she was born DATE, what's that in iso|the letter is from DATE. iso?
normalise: DATE|DATE, machine readable|my form wants yyyy-mm-dd, i have DATE|standard format for DATE
turn DATE around so the year comes first|invoice date DATE|write DATE the international way|DATE as 8601|date: DATE
they got married on DATE, give me the iso version|DATE, please convert
"""),
    "json_extract": entries("""
make json out of this: PERSON, 34, lives in CITY
PERSON works in CITY as a baker since 2011 -> json with name, city, job
pull name and city: "PERSON just moved to CITY"|fields name, age, town. text: PERSON turned 51 in CITY
as a json object please: PERSON paid 40 euros in CITY|{name, city, price} from: PERSON bought a lamp in CITY for 25
who and where, as json: PERSON will meet us in CITY|get the structured bits from "PERSON, nurse, CITY"
key value pairs for: PERSON from CITY, 29|extract name and profession, json only: PERSON is a pilot
return {"name":..., "city":...} for PERSON of CITY|parse this contact into json: PERSON, CITY, +44 20 5550
fill in {name, birthplace}: PERSON was born in CITY|json it: PERSON, 8 years old, CITY
data from the sentence as an object: PERSON sold three bikes in CITY
give me name/year/place in json: PERSON, 1990, CITY
"""),
    "sentiment": entries("""
is this good or bad: "ITEM was a let down"|happy or unhappy? ITEM exceeded everything i hoped
how does this person feel: never again ITEM|"loved ITEM, will come back" positive?
thumbs up or down: ITEM is fine i guess, slow though|does this sound pleased: ITEM made my week
mood of this comment: ugh, ITEM again|ITEM? absolutely wonderful. (pos/neg)|what's the vibe: "ITEM was ok but pricey"
would you call this review negative: ITEM broke on day two|feedback says "ITEM rocks". label it
angry or content: still waiting for ITEM|rate the tone: honestly ITEM could not have been better
ITEM disappointed us all - sentiment?|customer wrote: ITEM is a joke. how do they feel
is the writer satisfied? "ITEM does what it should"|pos or neg: can't recommend ITEM enough
"""),
    "shell": entries("""
delete FILE but ask first|how big is FILE|find FILE in here|count the lines of FILE|show the last 50 lines of FILE
unpack FILE|zip up FILE|which port is node listening on|who is logged in on this box|rename FILE to old_FILE
copy FILE over to the usb stick|what's eating my disk|follow FILE as it grows|make FILE executable
list hidden files, newest first|replace foo by bar in FILE|stop the process called chrome|how much ram is free
download a page to FILE from the terminal|where is python installed|compare FILE with the backup
only the second column of FILE|sort FILE and drop repeats|what changed in FILE today, bash|symlink FILE into my home
kill everything named java|search for TODO in FILE recursively|current folder, which command
"""),
    "text_to_sql": entries("""
table TABLE - WHAT|from TABLE i need WHAT|TABLE. which rows have no owner|we have TABLE, show me WHAT
given TABLE, how do i get WHAT|select from TABLE: WHAT|my db has TABLE. WHAT?|TABLE => WHAT, sorted
query to get WHAT out of TABLE|remove old rows from TABLE|in TABLE set everything to zero where it is null
join TABLE with itself to find WHAT|WHAT, from TABLE, sql please|TABLE - who is highest|with TABLE, list WHAT by month
TABLE: how many per day|add up one column of TABLE by another|schema TABLE. question: WHAT
i've a table TABLE and want WHAT|what's the statement for WHAT in TABLE
"""),
    "ticket_triage": entries("""
TROUBLE|customer says: TROUBLE|hi, TROUBLE. please help|new ticket: TROUBLE
"TROUBLE" - how urgent is this and who takes it|TROUBLE!!! fix this now|hello team TROUBLE, thanks
where does this go: TROUBLE|which queue and priority: TROUBLE|mail from a client: TROUBLE|TROUBLE, since yesterday
subject: TROUBLE|sort this request: TROUBLE|good morning, TROUBLE, can someone look|is this urgent? "TROUBLE"
billing, bug or question? TROUBLE|support inbox: TROUBLE|user reports TROUBLE|TROUBLE and i need it for work today
"""),
    "tool_call": entries("""
text PERSON that i'm late|call PERSON|book a table for two on DAY at TIME|wake me at TIME
remind me to water the plants at TIME|play SONG|turn off the lights in the kitchen
what will the weather be in CITY on DAY|put lunch with PERSON in my calendar, DAY TIME|set a timer for UNIT
get me a taxi to the station|flights from CITY to CITY on DAY|translate "good night" for PERSON into polish
email PERSON that the meeting moved to TIME|skip this song|volume down a bit|find a hotel in CITY for DAY
heat the living room to 21|how long to drive to CITY|order a pizza for TIME|add milk to my shopping list
convert 300 dollars to yen|directions to CITY please|tell PERSON i arrived in CITY|is it raining in CITY
cancel my alarm|message the group: see you DAY|turn SONG up
"""),
}


def prompt(rng: random.Random, task: str) -> str:
    """One prompt of a task."""
    text = rng.choice(SPOKEN[task])
    for name, pool in POOLS.items():
        while name in text:
            text = text.replace(name, rng.choice(entries(pool)), 1)
    return text[0].upper() + text[1:] if rng.random() < 0.3 else text
