#!/usr/bin/env python3
"""Writes myelin.1 and myelin.toml.5 out of what the program says about itself: manpages.py PROGRAM FOLDER."""
import os
import pathlib
import re
import subprocess
import sys

program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
environment = {key: value for key, value in os.environ.items() if not key.startswith("MYELIN_")}


def told(*arguments):
    return subprocess.run([os.path.abspath(program), *arguments], env=environment, check=True, capture_output=True, text=True).stdout


def escaped(text):
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("’", "'")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def as_it_is(text):
    return f".nf\n{escaped(text.rstrip())}\n.fi\n"


def sections(text):
    """The parts of a help text: what is before `Usage:`, and each part with a heading."""
    parts = re.split(r"^(Usage|Commands|Arguments|Options):", "\n" + text, flags=re.M)
    return parts[0].strip(), dict(zip(parts[1::2], parts[2::2]))


def commands_of(parts):
    return [name for name in re.findall(r"^  ([a-z][a-z-]*)(?: |$)", parts.get("Commands", ""), flags=re.M) if name != "help"]


def described(path):
    """A command and those below it."""
    about, parts = sections(told(*path, "--help"))
    below = commands_of(parts)
    page = ""
    if path and not below:
        page += f".SS myelin {escaped(' '.join(path))}\n{escaped(about)}\n.PP\n"
        page += as_it_is("Usage: " + parts["Usage"].strip())
        for heading in ("Arguments", "Options"):
            if heading in parts:
                page += f".PP\n{as_it_is(heading + ':' + parts[heading])}"
    for name in below:
        page += described([*path, name])
    return page


version = told("version").split()[1]
about, parts = sections(told("--help"))
exits = """0 done, or stopped as asked; 64 the command line is wrong; 69 something is not to be had, such as a port or the
database; 70 a mistake in the program; 71 the operating system refuses something; 73 a file cannot be made; 74 reading or
writing failed; 75 something did not finish in time; 78 the configuration is wrong.""".replace("\n", " ")
(folder / "myelin.1").write_text(rf""".TH MYELIN 1 "" "myelin {version}" "User Commands"
.SH NAME
myelin \- homeserver for Matrix
.SH SYNOPSIS
{as_it_is(parts["Usage"].strip())}.SH DESCRIPTION
{escaped(about)}
.SH COMMANDS
{described([])}.SH EXIT STATUS
{escaped(exits)}
.SH FILES
.TP
.I /etc/myelin/myelin.toml
The configuration of the service, see
.BR myelin.toml (5).
.TP
.I /var/lib/myelin
Uploaded files, and the embedded database. Commands that work on it should be run as the user of the service:
.B runuser \-u myelin \-\- myelin user create alice \-\-config /etc/myelin/myelin.toml
.SH ENVIRONMENT
.TP
.B MYELIN_CONFIG
A configuration file, as with
.BR \-\-config .
.TP
.B MYELIN_*
Settings, which win over those of files, see
.BR myelin.toml (5).
.SH SEE ALSO
.BR myelin.toml (5),
.BR systemctl (1)
""")
(folder / "myelin.toml.5").write_text(rf""".TH MYELIN.TOML 5 "" "myelin {version}" "File Formats"
.SH NAME
myelin.toml \- configuration of the homeserver myelin
.SH DESCRIPTION
A file in the format TOML.
.B myelin config generate NAME
writes one with every setting and its default, which is shown below;
.B myelin config check
finds mistakes. A setting may also come from the environment:
.B MYELIN_DATABASE__URL
is
.B url
of the section
.BR [database] .
After a change:
.BR "systemctl restart myelin" ,
or
.B systemctl reload myelin
for the level of the logs and the rate limits.
.SH SETTINGS
{as_it_is(told("config", "generate", "example.org"))}.SH SEE ALSO
.BR myelin (1)
""")
