"""What the program's processes leave out of what other libraries say."""

import logging


def quiet() -> None:
    """Leave out what libraries that happen to be installed say of accelerators when imported."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").disabled = True
