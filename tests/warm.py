"""Run commands as forks of a process that has imported everything, which saves the four seconds that importing torch takes.

They are ordinary processes, which can be signalled, killed and waited for. A test of the start itself (closed streams,
variables, limits, launchers) starts its own interpreter instead.

`python warm.py SOCKET` is the process that is forked. It computes nothing, so that no thread is lost in a fork, and ends with
the last process that uses it: those that share the suite share it too.
"""

import array
import atexit
import contextlib
import fcntl
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
STAYS = b"stays"
"""What a process that uses this one sends first, on a connection that lasts as long as that."""
LARGEST = 1 << 20
"""The most bytes of a request, which holds the words of the command and the environment's variables."""

SHIM = """#!{python} -IS
import array, json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({place!r})
    asked = [["univip-stream", *sys.argv[1:]], os.getcwd(), dict(os.environ), False]
    server.sendmsg([json.dumps(asked).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    pid = int(server.recv(100))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))  # what torchrun stops its ranks with
    status = int(server.recv(100))
sys.exit(status if status >= 0 else 128 - status)
"""
"""Script `univip-stream` for shells and launchers: it runs the command as a fork, and exits with the fork's status."""


class Warm:
    """The process that commands are forked from, and methods that start them. The fixture `warm` makes it.

    `folder` has a short name, for the socket in it. Whoever comes to a folder first starts the process, and others use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = str(folder / "socket")
        self.bin = folder / "bin"
        """Folder for PATH with a `univip-stream` that runs as a fork."""
        while not self._joined():
            pass  # what was there has just ended, with its folder

    def _joined(self) -> bool:
        """Use the process of this folder, which is started if there is none."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.folder.exists():
                return self._known() or (self._start(), self._known())[1]
        return False

    def _known(self) -> bool:
        """Say to the process that it is used, if there is one."""
        self._stays = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):
            self._stays.connect(self.place)
            self._stays.send(STAYS)
            if self._stays.recv(100) == STAYS:
                return True
        self._stays.close()
        return False

    def _start(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        Path(self.place).unlink(missing_ok=True)  # of a process that was killed
        process = subprocess.Popen([sys.executable, __file__, self.place], stdin=DEVNULL, stdout=PIPE)
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
        process.returncode = 0  # it may outlive this process, which need not wait for it
        self.bin.mkdir(exist_ok=True)
        shim = self.bin / "univip-stream"
        shim.write_text(SHIM.format(python=sys.executable, place=self.place))
        shim.chmod(0o755)

    def close(self) -> None:
        """Use the process no longer, also where a forked child that was left over holds the connection open."""
        with self._stays:
            self._stays.shutdown(socket.SHUT_RDWR)

    def start(self, words, *, stdout=None, stderr=None, cwd=None, env=None, start_new_session=False):
        """Start a command like `subprocess.Popen([sys.executable, *words], text=True, ...)`.

        `words` must begin with -m univip_stream or -c CODE.
        """
        return Started(self.place, [*map(str, words)], stdout, stderr, cwd, env, start_new_session)

    def run(self, words, *, timeout=250, **more):
        """Run a command like `subprocess.run([sys.executable, *words], capture_output=True, text=True, ...)`."""
        with contextlib.ExitStack() as files:
            out, err = (files.enter_context(open(os.memfd_create(name), "w+", errors="replace")) for name in ("out", "err"))
            process = self.start(words, stdout=out, stderr=err, **more)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(words, process.returncode, out.read(), err.read())

    def ranks(self, count, words, *, timeout=120, **variables):
        """Run a command in `count` ranks that find each other as under torchrun; return (statuses, everything on stderr).

        `variables` are added to the environment.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        said = open(os.memfd_create("said"), "w+", errors="replace")  # noqa: SIM115
        jobs = []
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = os.environ | variables | {name: str(value) for name, value in place.items()}
            jobs.append(self.start(words, stdout=DEVNULL, stderr=said, env=env))
        until = time.monotonic() + timeout
        try:
            statuses = [job.wait(max(0.0, until - time.monotonic())) for job in jobs]
        finally:
            for job in jobs:
                job.kill()
        with said:
            said.seek(0)
            return statuses, said.read()


class Started:
    """A running command, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, place, words, stdout, stderr, cwd, env, start_new_session):
        self.args, self.returncode, self.stderr = words, None, None
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(place)
        opened = [os.open(os.devnull, os.O_RDONLY)]
        for asked, inherited in ((stdout, 1), (stderr, 2)):
            if asked == PIPE:
                assert inherited == 2, "one pipe, so that none fills unread"
                read, write = os.pipe()
                self.stderr = open(read, errors="replace")  # noqa: SIM115
                opened.append(write)
            elif asked == DEVNULL:
                opened.append(os.open(os.devnull, os.O_WRONLY))
            else:
                opened.append(os.dup(inherited if asked is None else asked.fileno()))
        request = json.dumps([words, str(cwd or Path.cwd()), dict(os.environ if env is None else env), start_new_session])
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", opened))
        self._server.sendmsg([request.encode()], [rights])
        for file in opened:
            os.close(file)
        self.pid = int(self._server.recv(100))

    def poll(self):
        return self._wait_for_status(0)

    def wait(self, timeout=None):
        if self._wait_for_status(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _wait_for_status(self, timeout):
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            self.returncode = int(self._server.recv(100))
            self._server.close()
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end, and return (None, everything on a piped stderr)."""
        said, until = [], None if timeout is None else time.monotonic() + timeout
        while self.stderr is not None:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self.stderr], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout, "".join(said))
            piece = os.read(self.stderr.fileno(), 1 << 16)
            said.append(piece.decode(errors="replace"))
            if not piece:
                self.stderr.close()
                break
        self.wait(None if until is None else max(0.0, until - time.monotonic()) + 1)
        return None, "".join(said)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def serve(place):
    """Start a fork for each request and send back its process id and then its status. In a fork, return the command's words.

    A command is killed if the process that asked for it has gone, such as a test that failed.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(place)
    listener.listen(64)
    print("ready", flush=True)
    running, users, used = {}, set(), False
    while users or not used or not ended(Path(place).parent):
        readable = select.select([listener, *users, *running.values()], [], [], 0.02 if running else None)[0]
        for child in list(running):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                with running.pop(child) as asker, contextlib.suppress(OSError):  # it may have gone
                    asker.send(str(os.waitstatus_to_exitcode(status)).encode())
        for child in [child for child, asker in running.items() if asker in readable]:
            kill(child)
            running.pop(child).close()
        for user in users & set(readable):  # it has ended
            users.remove(user)
            user.close()
        if listener in readable:
            asker, _ = listener.accept()
            request, files, _, _ = socket.recv_fds(asker, LARGEST, 3)
            if request == STAYS:
                asker.send(STAYS)
                users.add(asker)
                used = True
                continue
            words, folder, variables, session = json.loads(request)
            child = os.fork()
            if child == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                for own in (listener, asker, *users, *running.values()):
                    own.close()
                for file in files:
                    os.close(file)
                if session:
                    os.setsid()
                # A suite that was started in the background (`make test &`) ignores Ctrl-C; the command does not.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                # The parent's stream objects keep the state of its own files, and would seek in files that cannot.
                sys.stdin = open(0, closefd=False)  # noqa: SIM115
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(variables)
                return words
            for file in files:
                os.close(file)
            asker.send(str(child).encode())
            running[child] = asker
    for child in running:
        kill(child)
    os._exit(0)


def ended(folder):
    """Remove the folder, unless somebody comes to it at this moment."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
        return True


def kill(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent / "cli"))
    from crashes import imported

    imported()
    gc.collect()
    gc.freeze()  # the collector no longer visits these objects, which would copy their pages into each fork
    words = serve(sys.argv[1])
    # From here on this is the command, which must find modules where an interpreter of its own would.
    here = [] if words[0] == "univip-stream" else [os.getcwd()]
    sys.path[:] = [*here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path[2:]]
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
        else:
            assert words[0] == "univip-stream" or words[:2] == ["-m", "univip_stream"], words
            sys.argv = ["univip-stream", *words[1 if words[0] == "univip-stream" else 2 :]]
            from univip_stream.cli import main

            main()
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    # End as an interpreter does, but without destroying all modules, which takes as long as the rest.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
