"""How a command ends: in one line and an exit code, whatever a user or the machine caused."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from glance_fast.cli.console import complain
from glance_fast.cli.flags import as_flags
from glance_fast.errors import UserError, elsewhere
from glance_fast.jobs.ranks import AnotherFailed, this_process

FAILED, SOME_IMAGES_FAILED, STOPPED = 1, 3, 130
# What takes less memory, by command; the others have no setting for it.
SMALLER = {
    **dict.fromkeys(
        ("score-dir", "watch", "serve", "calibrate", "evaluate", "bench", "features", "panel"),
        "use a smaller --memory-mib",
    ),
    **dict.fromkeys(("update", "explain"), "use a smaller --memory-mib"),
    "train": "use a smaller image_size, batch or cache_mib",
}
# Commands that leave something that only --overwrite replaces, and that none goes on with.
REPLACING = ("explain", "evaluate", "demo", "features", "panel")
# Commands whose work several processes of torchrun share.
SHARED = ("train", "score-dir")
# In the ``meta`` of a command's context: a function that says, once the command has stopped, whether there is
# something for --resume.
RESUMABLE = "glance_fast.resumable"


class Commands(TyperGroup):
    """The commands; whatever a user or the machine can cause ends in one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            said = as_flags(str(error), self.get_command(ctx, ctx.invoked_subcommand or ""))
            line = f"{said}{after_full_disk(error.__cause__, ctx)}"
        except KeyboardInterrupt:
            goes_on = ctx.meta.get(RESUMABLE, bool)()
            if this_process().rank == 0:  # torchrun stops them all
                complain(
                    "glance-fast: stopped" + ("; the same command with --resume goes on" if goes_on else "")
                )
            raise typer.Exit(STOPPED) from None
        except AnotherFailed:
            raise typer.Exit(FAILED) from None
        except MemoryError:
            line = after_full_memory(ctx.invoked_subcommand)
        except BrokenPipeError:
            raise  # the reader of our output has gone: Typer ends quietly
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            advice = elsewhere(error) + after_full_disk(error, ctx)
            line = f"{where}{error.strerror or error}{advice}"
        except RuntimeError as error:
            # PyTorch's own errors for it are no MemoryError, on the CPU not even a class of their own.
            if not any(text in str(error) for text in ("out of memory", "can't allocate memory")):
                raise
            line = after_full_memory(ctx.invoked_subcommand)
        complain(f"glance-fast: {line}")
        raise typer.Exit(FAILED)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that was asked for; none is to do its whole work in each process of torchrun."""
        name, command, rest = super().resolve_command(ctx, args)
        here = this_process()
        if here.count > 1 and name not in SHARED:
            if here.rank > 0:
                raise AnotherFailed
            raise UserError(f"{name}: processes cannot share its work; start it without torchrun")
        return name, command, rest


def after_full_memory(command: str | None) -> str:
    """That memory is full, and what to do."""
    advice = SMALLER.get(command or "", "end other programs that use it, or choose another --device")
    return f"out of memory; {advice}"


def after_full_disk(cause: BaseException | None, ctx: Any) -> str:
    """What to do after an error, if a full disk caused it."""
    if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    again = "; make room there, then the same command"
    if ctx.meta.get(RESUMABLE, bool)():
        return f"{again} with --resume goes on"
    return again + (" with --overwrite begins anew" if ctx.invoked_subcommand in REPLACING else " again")
