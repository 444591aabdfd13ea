"""What a run says to prompts (`dlrun predict RUN --prompt TEXT`), and what it could not read of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.contracts import Row
    from dlrun.predictor import TrainedModel


def said_to(predictor: TrainedModel, prompts: Sequence[str]) -> list[Row]:
    """{"prompt", "text"} for each prompt. Raises: DlrunError naming one that is no text."""
    for number, prompt in enumerate(prompts, start=1):
        which = f"--prompt number {number}" if len(prompts) > 1 else "--prompt"
        if not prompt.strip():
            raise DlrunError(f"{which} is empty", 'e.g. --prompt "Once upon a time"')
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # bytes of a command line that are no UTF-8 come as half surrogates
            raise DlrunError(f"{which} is not UTF-8", "check the encoding of your terminal") from error
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, predictor.generate(prompts), strict=True)]


def losses(predictor: TrainedModel) -> list[str]:
    """What of all that it was given so far the run's input pipeline did not read, a sentence each."""
    from dlrun.contracts import WithNotes

    return predictor.inputs.notes() if isinstance(predictor.inputs, WithNotes) else []


def print_plainly(predictions: Sequence[Row]) -> None:
    """The text of a prompt as it is; of several, each under its prompt."""
    for row in predictions:
        if len(predictions) > 1:
            sys.stdout.write(f"> {row['prompt']}\n")
        sys.stdout.write(f"{row['text']}\n")
    sys.stdout.flush()
