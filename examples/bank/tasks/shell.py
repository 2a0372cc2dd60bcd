"""Words to one shell command: "show the last 20 lines of server.log" -> `tail -n 20 server.log`."""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.bank.tasks.phrasing import ask
from examples.bank.tasks.pools import (
    Split,
    entries,
    name_of,
    noun,
    pool,
    split_of,
)

INSTRUCTIONS = (
    "Write the shell command", "Shell command to", "bash", "linux command", "Command line for",
    "Give me the bash command to",
    "What is the command to", "terminal command", "bash command", "One shell command", "Unix command to", "shell",
    "How do I do this in bash", "command for this", "Convert to a shell command", "bash one-liner",
    "Translate to bash",
    "Linux terminal", "In the shell", "Give only the command",
)  # fmt: skip
STEMS = entries("""
server|access|notes|report|data|config|main|index|users|backup|results|error|budget|draft|photo|todo|summary
readme|train|output|invoice|model|script|log|test|orders|song|letter|archive|settings|diary|sales|app|debug
thesis|customers|image|menu|recipes|schedule|metrics|events|video|plan|inventory|contacts|slides|paper|history
system
""")
FOLDERS = entries("""
src|docs|photos|logs|backups|downloads|projects|music|build|tmp|assets|videos|reports|tests|archive|public|dist
images|scripts|old|data|website|work|exports|books|music2024|invoices|configs|static|games|lectures|drafts
""")
WORDS = entries("""
ERROR|warning|TODO|password|timeout|import|Alice|failed|localhost|version|null|main|invoice|exception|connect
refused|user|total|deprecated|fixme|token|retry|Berlin|critical|license|status|debug|missing|admin|success
""")
PROCESSES = (
    "nginx|firefox|python|mysqld|redis|node|java|chrome|sshd|docker|postgres|apache2|vim|cron|spotify|slack".split("|")
)
EXTENSIONS = "txt log csv json py md jpg png sh yaml html mp3 pdf xml cfg sql".split()


def row(rng: random.Random, split: Split) -> tuple[str, str]:
    """A request in words, and its shell command."""
    # Requests without names ("free disk space") are the same in both splits, so only training has them.
    phrasings, command = rng.choice([form for form in _FORMS if split == "train" or "{" in form[1]])
    other = _file(rng, split)
    values = {
        "f": _file(rng, split),
        "g": other,
        "d": _word(rng, split, FOLDERS),
        "e": _word(rng, split, FOLDERS),
        "w": _word(rng, split, WORDS),
        "v": _word(rng, split, WORDS),
        "p": rng.choice(pool(split, PROCESSES)),
        "x": rng.choice(EXTENSIONS),
        "n": rng.choice((5, 10, 20, 50, 100, rng.randrange(2, 200))),
        "m": rng.choice((755, 644, 600, 700, 777, 640, 750, 664)),
    }
    if values["f"] == other or values["d"] == values["e"] or values["w"] == values["v"]:
        return row(rng, split)
    text = rng.choice(phrasings).format(**values)
    draw = rng.random()
    if draw < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25 and not text.endswith("?"):
        text += "."
    return text, command.format(**values)


def frame(rng: random.Random, text: str) -> str:
    """Wrap `text` in a prompt."""
    return ask(rng, INSTRUCTIONS, text, bare=0.2)


def _word(rng: random.Random, split: Split, words: Sequence[str]) -> str:
    """One of `words`; in training, half the time an arbitrary word."""
    if split == "heldout" or rng.random() < 0.5:
        return rng.choice(pool(split, words))
    while True:
        word = rng.choice((noun(rng, split), noun(rng, split) + "s", name_of(rng, split, words),
                           noun(rng, split).upper(),
                           f"{noun(rng, split)}_{noun(rng, split)}",
                           f"{noun(rng, split)}-{noun(rng, split)}"))  # fmt: skip
        if split_of(word) == split:
            return word


def _file(rng: random.Random, split: Split) -> str:
    stem = _word(rng, split, STEMS)
    if rng.random() < 0.2:
        stem += rng.choice(("_", "-", "")) + str(rng.randrange(1, 100))
    return f"{stem}.{rng.choice(EXTENSIONS)}"


def _read_forms(text: str) -> list[tuple[list[str], str]]:
    """(phrasings, command) pairs from blocks of a command and, indented below it, its phrasings."""
    forms: list[tuple[list[str], str]] = []
    for line in text.strip("\n").split("\n"):
        if line.startswith(" "):
            forms[-1][0].extend(line.strip().split("|"))
        else:
            forms.append(([], line))
    return forms


# f, g files; d, e folders; w, v words; p a process; x an extension; n a number; m a file mode
_FORMS = _read_forms("""
tail -n {n} {f}
    show the last {n} lines of {f}|last {n} lines of {f}|print the final {n} lines of {f}|tail {n} lines of {f}
    see the end of {f}, {n} lines
head -n {n} {f}
    show the first {n} lines of {f}|first {n} lines of {f}|print the top {n} lines of {f}
    display the beginning of {f}, {n} lines|head of {f}, {n} lines
tail -f {f}
    follow {f} as it grows|watch {f} for new lines|keep printing new lines of {f}|follow the log file {f} live
wc -l {f}
    count the lines in {f}|how many lines does {f} have|number of lines in {f}|line count of {f}
    how many lines are in {f}?
wc -w {f}
    count the words in {f}|how many words does {f} have|number of words in {f}|word count of {f}
grep {w} {f}
    find lines with {w} in {f}|search for {w} in {f}|show lines containing {w} in {f}|grep {f} for {w}
    look for the word {w} in {f}
grep -i {w} {f}
    search for {w} in {f} ignoring case|find {w} in {f}, case insensitive|case insensitive search for {w} in {f}
grep -v {w} {f}
    show lines of {f} without {w}|print the lines in {f} that do not contain {w}
    remove lines with {w} from the output of {f}|lines of {f} not containing {w}
grep -c {w} {f}
    count lines with {w} in {f}|how many lines of {f} contain {w}
    how often does {w} appear in {f}, count the lines|number of lines with {w} in {f}
grep -r {w} {d}
    search for {w} in all files in {d}|find {w} recursively in {d}|which files under {d} contain {w}
    look for {w} everywhere in the folder {d}
find {d} -name '*.{x}'
    find all {x} files in {d}|list every .{x} file under {d}|find files ending in .{x} in {d}
    where are the {x} files in {d}|search {d} for {x} files
find {d} -name '*.{x}' -delete
    delete all {x} files in {d}, also in subfolders|find and delete every .{x} file under {d}
    remove every {x} file below {d}
find {d} -size +{n}M
    find files bigger than {n} MB in {d}|files larger than {n} megabytes under {d}|list files over {n}MB in {d}
cp {f} {d}/
    copy {f} to {d}|copy the file {f} into the folder {d}|put a copy of {f} in {d}|duplicate {f} into {d}
cp -r {d} {e}
    copy the folder {d} to {e}|copy directory {d} to {e}|make a copy of the folder {d} named {e}
    copy everything in the directory {d} to {e} recursively
mv {f} {d}/
    move {f} to {d}|move the file {f} into the folder {d}|put {f} into {d}, do not keep the original
mv {f} {g}
    rename {f} to {g}|change the name of {f} to {g}|give {f} the new name {g}
rm {f}
    delete {f}|remove the file {f}|get rid of {f}|erase {f}
rm -r {d}
    delete the folder {d}|remove the directory {d} and everything in it|delete {d} recursively
    get rid of the folder {d} with all its contents
mkdir {d}
    create a folder called {d}|make a directory named {d}|new folder {d}|create the directory {d}
    make folder {d}
touch {f}
    create an empty file {f}|make a new empty file called {f}|new empty file {f}
ls {d}
    list the files in {d}|what is in the folder {d}|show the contents of the directory {d}|list {d}
    files in {d}?
ls -a {d}
    list all files in {d} including hidden ones|show hidden files in {d}
    list everything in {d}, hidden files too
ls -l {d}
    list the files in {d} with details|long listing of {d}|show files in {d} with size and permissions
ls -S {d}
    list files in {d} sorted by size|files of {d} ordered by size|show {d} biggest files first
du -sh {d}
    show how much space {d} takes|size of the folder {d}|how big is the directory {d}|disk usage of {d}
df -h
    show free disk space|how much disk space is left|free space on all disks|is the disk full?
tar -czf {d}.tar.gz {d}
    make a compressed archive of {d}|compress the folder {d} to {d}.tar.gz|create {d}.tar.gz from {d}
    tar and gzip {d}|pack the folder {d} into a tar.gz
tar -xzf {d}.tar.gz
    extract {d}.tar.gz|unpack the archive {d}.tar.gz|untar {d}.tar.gz|open up {d}.tar.gz
zip -r {d}.zip {d}
    zip the folder {d}|make a zip of {d}|create {d}.zip from the folder {d}
unzip {d}.zip
    unzip {d}.zip|extract the zip file {d}.zip|unpack {d}.zip
sort {f}
    sort {f}|sort the lines of {f}|print {f} in alphabetical order|show {f} sorted alphabetically
sort -n {f}
    sort {f} numerically|sort the lines of {f} by number|order {f} by numeric value
sort -r {f}
    sort {f} in reverse|sort the lines of {f} in reverse order|reverse sort of {f}
sort -u {f}
    show the unique lines of {f}|remove duplicate lines from {f}|sort {f} and drop duplicates
    distinct lines of {f}
sed -i 's/{w}/{v}/g' {f}
    replace {w} with {v} in {f}|change every {w} to {v} in {f}|substitute {v} for {w} in the file {f}
    in {f}, replace all {w} by {v}
diff {f} {g}
    compare {f} and {g}|show the differences between {f} and {g}|what changed between {f} and {g}
    diff of {f} and {g}
chmod +x {f}
    make {f} executable|allow {f} to be executed|add the execute permission to {f}|give {f} execute rights
chmod {m} {f}
    set the permissions of {f} to {m}|change the mode of {f} to {m}|give {f} permissions {m}
    permissions {m} for {f}
cat {f}
    show the content of {f}|print {f}|display the file {f}|what is in {f}?|output {f}
pkill {p}
    kill all {p} processes|stop every process called {p}|end the process {p} by name|terminate {p}
pgrep {p}
    is {p} running|find the process id of {p}|what is the pid of {p}|pid of {p}
pwd
    show the current directory|which folder am I in|print the working directory|where am I
ls
    list the files here|list files|show the files in the current directory|what files are here
ls -a
    list all files here including hidden ones|show hidden files|list hidden files too
find . -name '*.{x}'
    find all {x} files|find every .{x} file here|find files ending in .{x}
    search for {x} files below the current folder
ls *.{x}
    list the {x} files in the current directory|show all .{x} files here|list all {x} files
rm *.{x}
    delete all {x} files in the current directory|remove every .{x} file here
grep -r {w} .
    search for {w} in all files|find {w} in all files below this folder|which files contain {w}
ls {d} | wc -l
    count the files in {d}|how many files are in {d}|number of files in the folder {d}
find . -name {f}
    find a file named {f}|where is {f}|locate {f} below the current folder|search for the file {f}
ps aux
    list all running processes|show every process|which processes are running
free -h
    show the memory usage|how much memory is free|free memory
curl -O https://{d}.org/{f}
    download https://{d}.org/{f}|fetch the file https://{d}.org/{f}|save https://{d}.org/{f} to disk
ping -c {n} {d}.com
    ping {d}.com {n} times|send {n} pings to {d}.com
cat {f} >> {g}
    append {f} to {g}|add the content of {f} to the end of {g}
cat {f} {g}
    join {f} and {g} and print them|print {f} followed by {g}|concatenate {f} and {g}
cd ..
    go to the parent folder|go up one directory|one folder up
env
    print the environment variables|show my environment
whoami
    who am I logged in as|show my user name|what is my username
date
    show today's date and time|what time is it on this machine|print the current date
cd {d}
    go to the folder {d}|change into the directory {d}|enter {d}|switch to the directory {d}
""")
