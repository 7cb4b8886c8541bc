"""What the program's processes leave out of what other libraries say."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


def quiet() -> None:
    """Leave out what libraries that happen to be installed say of accelerators when imported."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").disabled = True


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what transformers says and draws, and without warnings, for a while."""
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()
