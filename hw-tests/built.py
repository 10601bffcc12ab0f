"""Reads cargo's messages and prints, for a shell, where the programs are: `target`, the folder of the build, and `engine_tests`, the
program of the engine's unit tests."""

import json
import shlex
import sys
from pathlib import Path

engine_tests = programs = None
for line in sys.stdin:
    message = json.loads(line)
    executable = message.get("executable")
    if message.get("reason") != "compiler-artifact" or not executable:
        continue
    kind, name = message["target"]["kind"], message["target"]["name"]
    if name == "rustydb" and "lib" in kind and message["profile"]["test"]:
        engine_tests = executable
    elif name == "rusty-db-server" and not message["profile"]["test"]:
        programs = Path(executable).parent
for name, value in (("engine_tests", engine_tests), ("programs", programs), ("target", programs.parent)):
    print(f"{name}={shlex.quote(str(value))}")
