"""What `[task]` and `[model]` of a translation recipe may hold."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sagelr.tasks.bitext.scoring import Words
from sagelr.tasks.bitext.subwords import SMALLEST

NUMBER_WORDS = "number-words"
LONGEST = 1000  # tokens: what the positions of the model have room for
FILES = ("source", "target")


class TranslationOptions(BaseModel):
    """`[task]`: which text, how it is split and cut into subwords, and how it is translated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = "translation"
    data: str | None = Field(
        None,
        description="a folder of train, validation and test files; multi30k, iwslt14 or wmt16; "
        "a data set of the hub; or number-words",
    )
    name: str | None = Field(None, description="configuration of a data set of the hub")
    revision: str | None = Field(None, description="of a data set of the hub")
    source: Path | None = Field(None, description="a file, in place of data: one sentence a line")
    target: Path | None = Field(None, description="its translation, line by line")
    validation_source: Path | None = Field(None, description="a file of its own; else held out")
    validation_target: Path | None = Field(None, description="goes with validation_source")
    test_source: Path | None = Field(None, description="the same")
    test_target: Path | None = Field(None, description="goes with test_source")
    source_language: str | None = Field(None, description="end of file names, or a hub's column")
    target_language: str | None = Field(None, description="the same")
    validation: float | None = Field(
        None, gt=0, description="pairs held out to choose settings, a share if below 1"
    )
    test: float | None = Field(
        None, gt=0, description="the same for the test split; by default a tenth, 5,000 at most"
    )
    split_seed: int = Field(0, ge=0, description="decides which pairs are held out")
    limit: int | None = Field(None, ge=2, description="training pairs, for a quick look")
    lowercase: bool = Field(False, description="both languages, before subwords are learned")
    vocabulary: int = Field(8000, ge=SMALLEST, description="joint subwords, at most")
    max_length: int = Field(
        256,
        ge=4,
        le=LONGEST,
        description="tokens; longer training pairs are left out, longer sentences scored are cut",
    )
    bleu_words: Words = Field(
        "13a", description='how sacreBLEU cuts words; "none" for text in words already'
    )
    beam: int = Field(5, ge=1, description="hypotheses of beam search")
    length_penalty: float = Field(1.0, description="exponent of the length, in beam search")

    @model_validator(mode="after")
    def _fits_together(self) -> TranslationOptions:
        for split in ("", "validation_", "test_"):
            given = [side for side in FILES if getattr(self, split + side) is not None]
            if len(given) == 1:
                other = next(side for side in FILES if side not in given)
                raise ValueError(
                    f"{split}{given[0]} is given without {split}{other}: a translation is two "
                    "files, line by line"
                )
            if split and given and self.source is None:
                raise ValueError(f"{split}source goes with source and target; give them too")
        if self.data is not None and self.source is not None:
            raise ValueError("data and source are two ways to say what is trained on: give one")
        if self.data is not None and None in (self.source_language, self.target_language):
            raise ValueError(
                "data goes with source_language and target_language, such as de and en"
            )
        if self.source_language is not None and self.source_language == self.target_language:
            raise ValueError(
                f"source_language and target_language are both {self.source_language!r}"
            )
        return self


class TransformerOptions(BaseModel):
    """`[model]`: the size of the Transformer, the same for encoder and decoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(256, ge=4, description="width")
    layers: int = Field(3, ge=1, description="of the encoder, and as many of the decoder")
    heads: int = Field(4, ge=1, description="of attention; they divide hidden")
    feed_forward: int = Field(1024, ge=4, description="width within feed-forward")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the activations")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="share of the attention weights")
    activation_dropout: float = Field(0.0, ge=0, lt=1, description="the same, within feed-forward")

    @model_validator(mode="after")
    def _divides(self) -> TransformerOptions:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not a multiple of heads = {self.heads}")
        return self
