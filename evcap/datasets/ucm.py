"""The 21 classes of UC Merced in words that a person asks with, and which classes show each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """one: "Is there ...?"; many: "How many places with ... are there?", for a place may hold several.

    also: other classes whose images often show this one too. Where this class is asked about they are not in the scene,
    so that an answer which follows the labels is true of the pixels as well.
    """

    one: str
    many: str
    also: frozenset[str] = frozenset()
    asked: bool = True

    @property
    def name(self) -> str:
        """The words without an article: "tennis court"."""
        return self.one.removeprefix("an ").removeprefix("a ")


def _words(one: str, many: str, also: str = "", asked: bool = True) -> Words:
    return Words(one, many, frozenset(also.split()), asked)


# From looking at 14 or more train tiles of each class and from counting which captions of one class name another.
UCM = {
    "agricultural": _words("farmland", "farmland"),
    "airplane": _words("an airplane", "airplanes"),
    "baseballdiamond": _words("a baseball diamond", "a baseball diamond"),
    "beach": _words("a beach", "a beach"),
    # buildings stand in the images of a dozen classes, trees in as many: nothing could be counted
    "buildings": _words("a group of large buildings", "large buildings", asked=False),
    "chaparral": _words("chaparral", "chaparral", "sparseresidential"),
    "denseresidential": _words(
        "a dense residential area", "dense housing", "mediumresidential mobilehomepark buildings intersection"
    ),
    "forest": _words("a forest", "forest", asked=False),
    "freeway": _words("a freeway", "a freeway", "overpass"),
    "golfcourse": _words("a golf course", "a golf course"),
    "harbor": _words("a harbor", "a harbor"),
    # a road junction is in sight in most images of houses, and in a photo that the background is cut from
    "intersection": _words("an intersection", "an intersection", asked=False),
    # the middle one of three densities: people would call its images by the names of both neighbours
    "mediumresidential": _words("a medium residential area", "houses", asked=False),
    "mobilehomepark": _words("a mobile home park", "mobile homes", "denseresidential mediumresidential"),
    "overpass": _words("an overpass", "an overpass", "freeway"),
    "parkinglot": _words(
        "a parking lot", "a parking lot", "buildings denseresidential intersection baseballdiamond tenniscourt"
    ),
    "river": _words("a river", "a river"),
    "runway": _words("a runway", "a runway", "airplane"),
    "sparseresidential": _words("a sparse residential area", "a lone house", "mediumresidential"),
    "storagetanks": _words("a storage tank", "storage tanks"),
    "tenniscourt": _words("a tennis court", "tennis courts", "sparseresidential denseresidential"),
}
