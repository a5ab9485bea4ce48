"""Who does the pieces of a long run: this process, one after the other; or workers of Dask (``apps/cluster.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from cgdpm_med.files import InputError

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Made = TypeVar("Made")
Progress = Callable[[str, float], None]


class Engine(Protocol):
    """Where work is done. What is sent must be picklable, unless the engine is :class:`InProcess`."""

    def once(self, make: Callable[[], Made]) -> Callable[[], Made]:
        """``make``, called once in each process that does work, such as one that loads a network."""

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer of a process that does work.

        Raises:
            InputError: what the question raised, or there is nobody to ask.
        """

    def do(
        self, work: Callable[[Item, Progress], Answer], items: Mapping[str, Item], progress: Progress
    ) -> Iterator[tuple[str, Answer | InputError]]:
        """Every item once: its key and its answer, or the InputError of its work, in the order in which they end.

        Args:
            work: of an item, with a function to tell how far it is.
            items: by a key that appears nowhere but in this process.
            progress: handed to ``work``, where that is done in this process.

        Raises:
            InputError: the run cannot go on; what is finished is complete.
        """


class InProcess:
    """This process, one item after the other."""

    def once(self, make: Callable[[], Made]) -> Callable[[], Made]:
        """Made at once, so that what is wrong with it is said before any work."""
        made = make()
        return lambda: made

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """See :class:`Engine`."""
        return question()

    def do(
        self, work: Callable[[Item, Progress], Answer], items: Mapping[str, Item], progress: Progress
    ) -> Iterator[tuple[str, Answer | InputError]]:
        """See :class:`Engine`."""
        for key, item in items.items():
            yield key, _attempted(work, item, progress)


def _attempted(work: Callable[[Item, Progress], Answer], item: Item, progress: Progress) -> Answer | InputError:
    try:
        return work(item, progress)
    except InputError as error:
        return error


def do_in_order(
    engine: Engine,
    work: Callable[[Item, Progress], Answer],
    items: Sequence[Item],
    progress: Progress,
    ended: Callable[[Item, Answer | InputError], None],
) -> list[Answer | InputError]:
    """The answers in the order of the items, whoever was first.

    Args:
        ended: is told each answer at once; what it raises ends the run.

    Raises:
        InputError: the run cannot go on.
    """
    numbered = {str(number): item for number, item in enumerate(items)}
    answers: dict[str, Answer | InputError] = {}
    for number, answer in engine.do(work, numbered, progress):
        answers[number] = answer
        ended(numbered[number], answer)
    return [answers[number] for number in numbered]


def about(error: InputError, path: Path) -> InputError:
    """The error with the file that it is about, where nobody knew it: a worker that is lost tells nothing."""
    return error if error.path is not None else InputError(error.what, path=path, remedy=error.remedy)
