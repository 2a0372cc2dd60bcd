"""A support ticket to `category=... priority=...`.

Categories: billing, account, bug, shipping, feature. Priority is high when the ticket presses, low when it says
there is no hurry, else normal. Some causes are whole sentences, the rest is put together from parts; the held-out
rows tell them of other people, products and companies.
"""

from __future__ import annotations

import random

from examples.bank.tasks.phrasing import ask
from examples.bank.tasks.pools import COMPANIES, FIRST_NAMES, Split, entries, noun, pool, product

INSTRUCTIONS = (
    "Triage this ticket", "Triage", "Classify the support ticket", "Category and priority?",
    "Which category and priority",
    "ticket triage", "Sort this support request", "Label this ticket with category and priority", "Route this ticket",
    "Support ticket", "Assign a category and a priority", "What team and how urgent",
    "classify this customer message",
    "Ticket", "New support request", "Determine category and priority", "Triage the following customer complaint",
    "incoming ticket",
)  # fmt: skip

CAUSES = {
    "billing": entries("""
I was charged twice this month|My invoice shows the wrong amount|I need a refund for my last payment
The payment on my card was declined|Please send me the invoice for March|Why did the price of my plan go up
There is a charge on my statement that I do not recognise|My discount code was not applied to the bill
I want to cancel my subscription and get my money back|How do I change my credit card
The VAT number on our invoice is missing|You billed us for 20 seats but we only have 12
I have not received a receipt for my purchase|My refund has not arrived yet
Can I switch from monthly to yearly billing|The invoice has our old company address
We were overcharged by 40 euros|Is there a fee for paying by bank transfer
My subscription renewed although I cancelled it|I paid twice for the same order
The total on the bill is too high|When will I be billed next|I got an invoice for a plan I never bought
Your system took the money twice|Can I pay with PayPal instead of a card|The tax on this invoice is wrong
I would like my deposit back|My free trial was charged
"""),
    "account": entries("""
I cannot log in to my account|I forgot my password and the reset mail does not arrive|My account is locked
Please change the email address of my profile|How do I delete my account|Two-factor codes are not accepted
I need to add a new user to our team|My username is wrong|Someone else has logged in to my account
The password reset link has expired|I want to merge my two accounts|Please give {name} admin rights
I lost the phone with my authenticator app|My login does not work since this morning
I cannot verify my email address|How can I change my password|Remove {name} from our workspace
My account says it is suspended|I can not sign in with Google|Single sign-on fails for all our users
I think my account was hacked|My profile picture can not be changed and my name is wrong
The verification code never arrives|I am locked out after three wrong passwords|Please close my account
I need to recover my old login|It says my user does not exist|Please update the phone number in my profile
"""),
    "bug": entries("""
The app crashes when I open the settings|The export button does nothing|I get error 500 when I save a form
The page stays blank after the last update|Search returns no results even for exact titles
The dashboard shows wrong numbers|Uploading a file fails at 99 percent
The mobile app freezes on the start screen|Dates are shown in the wrong time zone
Notifications arrive three times|The chart does not load in Firefox|Dark mode makes the text unreadable
The PDF report is empty|Copy and paste is broken in the editor|The site is very slow since yesterday
The API answers with a timeout|Sorting by date puts everything in the wrong order
The printer plugin throws an exception|The whole website is down|Saved changes disappear after a reload
The map shows an error message|The video player stutters and stops|Your software deleted my entries by itself
The sync between phone and laptop does not work|Buttons overlap on small screens
Importing a CSV gives a null pointer error|The integration with Slack stopped working
The calendar crashes on every click
"""),
    "shipping": entries("""
My package has not arrived|The {item} arrived damaged|You sent me the wrong {item}|Where is my order
The tracking number does not work|The courier left the parcel in the rain|I want to change the delivery address
My {item} is stuck at customs|The box was empty|Half of my order is missing
How long does delivery to Norway take|The parcel was delivered to my neighbour|I want to return the {item}
The delivery is two weeks late|Tracking says delivered but I have nothing
Can you ship the {item} to my office instead|The {item} came without its cover|Do you deliver on Saturdays
The driver never rang the bell|I received two {item} parcels instead of one
The package was sent to my old address|My {item} was broken when I opened the box|When will my {item} be shipped
The order still says preparing for dispatch|The courier lost my {item}|Please hold the delivery until next week
I got someone else's parcel|The return label for the {item} is missing
"""),
    "feature": entries("""
Please add a dark mode|It would be great to export to Excel|Could you support single sign-on
I would love a calendar view|Can you add keyboard shortcuts|An option to sort by date would help
Please make a version for tablets|We would like an API for reports|Will there be a Spanish translation
It would be nice to have bigger fonts|Please let us customise the colours
A button to duplicate projects would be useful|Could you add support for webhooks
I wish I could undo more than one step|Please offer offline mode|Any plans for an integration with Teams
Can we have more than five filters|I suggest adding tags to notes
A weekly summary email would be a nice addition|Please add two columns to the overview
It would help to see who edited a page|Could you build a widget for the home screen
My idea: let people vote on topics|We would like to schedule messages|Feature idea: drag and drop for files
Would you consider a student version with templates|Please add an emoji picker
It would be cool to have voice input
"""),
}


def _blocks(text: str) -> list[list[list[str]]]:
    return [[line.split("|") for line in block.strip("\n").split("\n")] for block in text.split("\n\n")]


# Composed tickets: a choice from each line of a block, joined by spaces; an empty choice ends a line with `|`.
# {o} any noun, {k} and {m} numbers, {w} a weekday or month.
COMPOSED = {
    "billing": _blocks("""
I was|we were|my company was|why was I
charged|billed|invoiced|debited
twice|{k} dollars too much|for a plan we do not use|after cancelling|for {k} seats|without notice|again in {w}

my|the|our|your last
invoice|bill|receipt|statement|credit note|payment confirmation
is wrong|is missing|shows {k} users instead of {m}|has the wrong address|from {w} is missing|does not add up|\
lists a {o} fee

please|could you|I want you to
refund|explain|reverse|correct
the charge of {k} euros|my last payment|the {w} fee|order {m}

my|our
payment|credit card|bank transfer|direct debit|PayPal payment
was declined|failed|is still pending|does not go through|is charged in the wrong currency|was rejected twice

where is|I am waiting for|when do I get
my refund|the receipt|the invoice|my money back
for {w}|for order {m}|of {k} dollars|

how do I|I would like to|can I
update my card|get a VAT invoice|pay by invoice|cancel my subscription|upgrade my plan|use my voucher
for {w}|before {w}|this year|
"""),
    "account": _blocks("""
I cannot|I can't|I am unable to|our users cannot|why can I not
log in|sign in|reset my password|verify my phone|change my email|access my account|activate two-factor login
since {w}|on my laptop|any more|with the code you sent|after {k} tries|

my|our|the admin
account|login|profile|password|user name
is locked|does not work|was deleted|is suspended|has expired|was hacked|is blocked after {k} attempts

please|could you
delete|unlock|rename|merge|reactivate|close
my account|the account of {name}|our team account|my old login

please|can you|how do I|I need to
add|remove|invite|promote
{name} as admin|a colleague to our team|{k} users|{name} as a member of our workspace

the
reset link|confirmation mail|security code|login page|captcha
never arrives|has expired|says wrong password|rejects my login|does not accept my code
"""),
    "bug": _blocks("""
the|your|our
page|app|{o} button|search|report|dashboard|editor|website|{o} screen|import|sync|menu
crashes|freezes|shows an error|stays blank|is very slow|does nothing|is broken|shows wrong numbers|hangs|\
throws error {m}

the|your
app|page|website|program|plugin|mobile app
crashes|freezes|goes blank|shows error {m}|closes itself|logs an exception
when I click save|when I open the {o}|on {w}|after the update|when I upload a file|in Chrome|on my tablet|\
if I press {o}

I get|we see|there is|since the update I get
error {m}|a blank page|a timeout|an exception|a crash|a strange message
when saving|on the {o} page|every time|in the {o} view|after each click

since
the last update|{w}|version {k}
nothing loads|the {o} list is empty|buttons are missing|files get corrupted|everything is slow
"""),
    "shipping": _blocks("""
my|the|our
package|parcel|order|{item}|delivery|order {m}
has not arrived|is late|is damaged|went to the wrong address|is stuck at customs|got lost|is still not here|\
came broken

I|we
received|got|was sent
the wrong {item}|a broken {item}|only half of the order|somebody else's parcel|an empty box|\
{k} instead of {m} pieces

when will|why has|where is
my {item}|my parcel|the order|order {m}
be delivered|still not arrived|now|be shipped

can I|please|how do I|I want to
change the delivery address|return the {item}|send back the {item}|pick up the parcel|get a return label|\
delay the delivery
of order {m}|until {w}|

the
courier|driver|tracking page|carrier|postman
never came|left it in the rain|says delivered but it is not|has no news since {w}|lost my {item}|\
could not find my house
"""),
    "feature": _blocks("""
please add|it would be great to have|I would love|could you add|I miss|feature request:|we would like|\
any plans for|how about
a dark theme|a {o} view|an export to PDF|a filter for {o}s|a button for {o}s|an integration with {company}|\
a {o} shortcut|a search by {o}|a widget|support for {o} files|a monthly report|tags|a print view
in the app|on the dashboard|for tablets|one day|in the next version|

it would be nice if|I wish|it would help if
I could|we could|one could
sort by {o}|rename a {o}|pin notes|undo more steps|share a {o}|use it offline|change the colours|\
see the history|drag and drop files

can you|could you|will you|please
support|offer|build|introduce
a {o} mode|{k} languages|offline use|voice input|a plugin for {company}|custom {o}s|bigger fonts
"""),
}
WHEN = ("Monday", "Friday", "Sunday", "January", "March", "May", "June", "July", "October", "December", "last week")
URGENT = entries("""
we are losing sales|as soon as possible|please fix asap|needs to be solved today|very urgent, please help
I have a deadline in an hour
This is urgent|We need this fixed today|Please help immediately|Our production is down|ASAP please
All our customers are affected|I am losing money every hour|Nobody in our company can work|URGENT
This is an emergency|It has to work before our launch tonight|Please treat this as critical
I need an answer right now|We are completely blocked|The whole team is waiting|This is very urgent
It is an absolute disaster for us|I need it today|Fix this now|High priority please
""")
RELAXED = entries("""
no stress|not a big deal|nothing urgent|if you find the time|no need to answer quickly|just a suggestion
No rush|There is no hurry|Whenever you have time|Not urgent|Take your time|Just wondering|When you get a chance
It can wait|Low priority|Only a small thing|It is not important|Next month is fine too|Just a minor thing
No need to hurry|Any time is fine|It is nothing pressing
""")
GREETINGS = ("Hi", "Hello", "Dear team", "Hi there", "Good morning", "Hey", "Hello support", "Dear Sir or Madam")
CLOSINGS = (
    "Thanks",
    "Thank you",
    "Best, {name}",
    "Regards, {name}",
    "Cheers",
    "{name}",
    "Thanks a lot",
    "{name}, {company}",
)


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A ticket, and its label."""
    category = rng.choice(list(CAUSES))
    priority = rng.choices(("normal", "high", "low"), weights=(4, 3, 3))[0]
    facts = {
        "name": rng.choice(pool(split, FIRST_NAMES)),
        "item": product(rng, split),
        "company": rng.choice(pool(split, COMPANIES)),
        "o": noun(rng, split),
        "k": rng.randrange(2, 60),
        "m": rng.randrange(60, 9999),
        "w": rng.choice(WHEN),
    }
    text = _cause(rng, category, facts)
    if priority != "normal":
        text = _with_pressure(rng, text, rng.choice(URGENT if priority == "high" else RELAXED))
    if rng.random() < 0.25:
        text = f"{rng.choice(GREETINGS)}, {text}"
    if rng.random() < 0.2:
        text = f"{text} {rng.choice(CLOSINGS).format(**facts)}"
    if rng.random() < 0.15:
        text = text.lower().rstrip(".")
    elif priority == "high" and rng.random() < 0.08:
        text = text.upper()
    return text, f"category={category} priority={priority}"


def frame(rng: random.Random, text: str) -> str:
    """Wrap `text` in a prompt."""
    return ask(rng, INSTRUCTIONS, text, bare=0.3)


def _cause(rng: random.Random, category: str, facts: dict[str, object]) -> str:
    if rng.random() < 0.4:
        cause = rng.choice(CAUSES[category])
    else:
        cause = " ".join(rng.choice(part) for part in rng.choice(COMPOSED[category])).strip()
    cause = cause.format(**facts)
    if rng.random() < 0.8:
        cause = cause[0].upper() + cause[1:]
    question = cause.split()[0].lower() in _QUESTIONS
    return cause + (rng.choice(("?", "?", "")) if question else rng.choice((".", ".", "!", "")))


def _with_pressure(rng: random.Random, text: str, pressure: str) -> str:
    """The ticket with a phrase of urgency, or of its lack, before or after it."""
    form = rng.random()
    if form < 0.6:
        return f"{text if text[-1] in '.!?' else text + '.'} {pressure}{rng.choice(('.', '!', ''))}"
    if form < 0.8:
        return f"{pressure}{rng.choice((':', '.', ','))} {text}"
    return f"{text.rstrip('.!?')}, {pressure if pressure[:4].isupper() else pressure[0].lower() + pressure[1:]}"


_QUESTIONS = {"why", "how", "can", "could", "where", "when", "is", "do", "will", "any", "would"}
