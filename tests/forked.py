"""`python -S tests/forked.py ADDRESS MODULE WORD ...`: a command that another process forks for us.

The process is the one behind tests/processes.py `serve_commands`; output, folder, environment and
exit code are those of this process. Signals are passed on, and where this process is killed, the
command is. Imports little: it starts in no time.
"""

import contextlib
import json
import os
import signal
import socket
import sys

address, module, *words = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.connect(address)
message = json.dumps([module, words, os.getcwd(), dict(os.environ)]).encode()
sent = socket.send_fds(server, [message], [1, 2])
server.sendall(message[sent:])
server.shutdown(socket.SHUT_WR)
answers = server.makefile()
command = int(answers.readline())


def pass_on(number: int, _: object) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended: its code is on the way
        os.kill(command, number)


for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1"):
    signal.signal(getattr(signal, name), pass_on)
code = int(answers.readline() or 1)
sys.exit(code if code >= 0 else 128 - code)  # as a shell says it of signals
