"""The pictures of networks at work, and where they are stored."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from project.atomic import write_json
from stages.training.trials import Trial

PICTURES_FOLDER = "inside"
"""The folder of the pictures, beside the report and among the artifacts of a run."""


@dataclass(frozen=True)
class Picture:
    """A view of a network, drawn.

    Attributes:
        width: the pixels at which the text of the picture is as large as that of the page.
        png: the content of the picture's file, which includes the title.
    """

    title: str
    caption: str
    width: int
    svg: Markup
    png: bytes


@dataclass(frozen=True)
class InspectedTrial:
    """A trial with the pictures of its network."""

    trial: Trial
    pictures: list[Picture]

    @property
    def subjects(self) -> list[str]:
        """The titles of the views without the number of the window, each once."""
        return list(dict.fromkeys(picture.title.partition(",")[0] for picture in self.pictures))


@dataclass(frozen=True)
class NetworkPictures:
    """The pictures of all networks.

    Attributes:
        windows: the time of the target of each window for which views are drawn, and its series if there are several.
        comparisons: the pictures that compare architectures, by file name.
        trials: the trials with pictures of their own.
        failures: what could not be drawn, and why.
    """

    windows: list[str] = field(default_factory=list)
    comparisons: dict[str, Picture] = field(default_factory=dict)
    trials: list[InspectedTrial] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def write(self, report: Path) -> None:
        """Write the pictures, and `pictures.json` with their titles and captions, into the folder of the report."""
        folder = report / PICTURES_FOLDER
        files = {folder / name: picture for name, picture in self.comparisons.items()}
        for inspected in self.trials:
            for i, picture in enumerate(inspected.pictures, 1):
                title = re.sub(r"\W+", "_", picture.title.lower()).strip("_")
                files[picture_folder(report, inspected.trial) / f"{i}_{title}.png"] = picture
        for file, picture in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture.png)
        captions = {
            file.relative_to(folder).as_posix(): {"title": picture.title, "caption": picture.caption}
            for file, picture in files.items()
        }
        write_json(folder / "pictures.json", {"windows": self.windows, "pictures": captions})


def picture_folder(report: Path, trial: Trial) -> Path:
    """The folder of the pictures of an architecture's best trial.

    Args:
        report: the folder of the report.
    """
    return report / PICTURES_FOLDER / trial.configuration.family.replace(" ", "_")
