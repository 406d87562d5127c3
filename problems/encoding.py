"""How the texts of a sequence problem become codes: the section `table` of such a problem in params.yaml."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EncodingSettings(BaseModel):
    """How a text becomes codes; numbers stay as the source gives them.

    Code 0 is padding, code 1 a token that is not in the vocabulary. The tokens follow, the most frequent one first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Literal["words", "spaces", "characters"] | None = Field(
        None,
        description="what a token is. words: in lower case, between spaces and punctuation, as Keras cuts them; "
        "spaces: whatever stands between spaces, and the end of a line; characters: each character",
    )
    vocabulary: int | None = Field(
        None,
        ge=3,
        description="number of codes, including those of padding and of unknown tokens; null: a code for each token",
    )
