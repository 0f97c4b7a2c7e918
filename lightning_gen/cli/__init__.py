"""The command line: `lightning-gen`.

What can be answered without torch (help, the list, the version, a misspelt command) is answered without it:
it takes seconds to load. Every command is therefore imported when it is run.
"""

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from lightning_gen import __version__
from lightning_gen.cli import pages
from lightning_gen.cli.failures import FAILED, INTERRUPTED, TERMINATED, USAGE, UsageError, explain, is_first_process
from lightning_gen.errors import StoppedBySignal, did_you_mean

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process where they are not given.

    Returns:
        The exit code: 0, 1 for a run that failed, 2 for wrong usage; 130 after Ctrl-C, 143 after SIGTERM and 138 after
        SIGUSR1, where the run has saved and the same command continues it.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args or os.environ.get("LIGHTNING_GEN_DEBUG", "0") not in ("", "0")
    args = [arg for arg in args if arg != "--debug"]
    command = args[0] if args else ""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # whoever read the output has enough, as `| head` does; the interpreter shall not flush into it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _stopped(command, "interrupted", INTERRUPTED)
    except SystemExit as stop:
        return _exit_code(command, stop)
    except Exception as error:
        explained = explain(error)
        if explained is None or debug:
            traceback.print_exc()
            return explained[1] if explained else FAILED
        text, code = explained
        if is_first_process():
            print(f"lightning-gen {command}: error: {text}", file=sys.stderr)
        return code
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        for command in args[1:2]:
            _check_command(command)
        print(pages.PAGES.get(args[1] if len(args) > 1 else "", pages.MAIN), end="")
        return 0 if args else USAGE
    if args[0] in ("-V", "--version", "version"):
        print(f"lightning_gen {__version__}")
        return 0
    command, *rest = args
    _check_command(command)
    if any(flag in rest for flag in ("-h", "--help")):
        print(pages.PAGES[command], end="")
        return 0
    return _run(command, rest)


def _check_command(command: str) -> None:
    if command not in pages.PAGES:
        raise UsageError(
            f"there is no command '{command}'.{did_you_mean(command, pages.PAGES)}"
            f" The commands are: {', '.join(pages.PAGES)}; `lightning-gen --help` explains them."
        )


def _run(command: str, args: list[str]) -> int:
    # the working folder is where a person's own classes lie; last, so that it shadows nothing
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    if command == "list":
        return _list(args)
    if command in ("sample", "evaluate"):
        from lightning_gen.cli import options

        # wrong options are found before torch is loaded
        if command == "sample":
            wanted = options.parse_sample(args)
            from lightning_gen.cli.sampling import sample

            return sample(*wanted)
        wanted = options.parse_evaluate(args)
        from lightning_gen.cli.evaluation import evaluate

        return evaluate(*wanted, args)
    if command == "convert":
        from lightning_gen.cli.options import parse_convert

        chosen = parse_convert(args)
        from lightning_gen.cli.converting import convert

        return convert(chosen)
    if command == "shards":
        from lightning_gen.cli.options import parse_shards

        chosen = parse_shards(args)
        from lightning_gen.cli.sharding import shards

        return shards(chosen)
    if command == "latents":
        from lightning_gen.cli.options import parse_latents

        chosen = parse_latents(args)
        from lightning_gen.cli.latents import latents

        return latents(chosen)
    from lightning_gen.cli import train

    return train.run(command, args)


def _list(args: list[str]) -> int:
    from lightning_gen.cli import configs

    if len(args) > 1 or any(arg.startswith("-") for arg in args):
        raise UsageError(f"list takes one text to look for, given were: {' '.join(args)}.")
    print(configs.table(*args))
    return 0


def _exit_code(command: str, stop: SystemExit) -> int:
    if isinstance(stop, StoppedBySignal):
        return _stopped(command, f"stopped by {signal.Signals(stop.number).name}", int(stop.number) + 128)
    if type(stop).__name__ == "SIGTERMException" or stop.code == TERMINATED:
        return _stopped(command, "terminated", TERMINATED)
    if isinstance(stop.__context__, KeyboardInterrupt):
        return _stopped(command, "interrupted", INTERRUPTED)
    if isinstance(stop.code, str):
        print(stop.code, file=sys.stderr)
        return FAILED
    return stop.code or 0


def _stopped(command: str, how: str, code: int) -> int:
    if is_first_process():
        more = {
            "fit": "; the same command continues from the newest checkpoint",
            "sample": "; the same command continues where it was",
            "shards": "; the same command continues where it was",
            "latents": "; the same command continues where it was",
        }
        print(f"\nlightning-gen {command}: {how}{more.get(command, '')}.", file=sys.stderr)
    return code
