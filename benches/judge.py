"""Values in folders, and how far two sets of them are apart."""
import pathlib

import numpy as np


def file_name(value):
    """As `lapidary` writes names of values in file names."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in value)


def write(folder, values):
    """`NAME.npy` for each value."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        np.save(folder / f"{file_name(name)}.npy", value)


def read(folder):
    """By file name, without its ending."""
    return {p.stem: np.load(p) for p in pathlib.Path(folder).glob("*.npy")}


def difference(got, expected, steps):
    """The largest difference of all outputs: `relative` to the largest number expected of that output, `steps` of its
    quantization where it has one, and the `share` of elements that are not equal. Raises `ValueError` where no number
    can say it: other names or shapes, infinities, results that are all the same."""
    result = {"relative": 0.0, "share": 0.0}
    for name, want in expected.items():
        have = got.get(name)
        if have is None:
            raise ValueError(f"no output `{name}`")
        if have.shape != want.shape:
            raise ValueError(f"`{name}` has shape {list(have.shape)}, expected {list(want.shape)}")
        have, want = have.astype(np.float64), want.astype(np.float64)
        if not np.isfinite(want).all() or want.max() == want.min():
            raise ValueError(f"`{name}` judges nothing: the expected numbers are not finite, or all the same")
        if not np.isfinite(have).all():
            raise ValueError(f"`{name}` has numbers that are not finite")
        apart = np.abs(have - want)
        result["relative"] = max(result["relative"], float(apart.max() / np.abs(want).max()))
        result["share"] = max(result["share"], float((apart > 0).mean()))
        if name in steps:
            result["steps"] = max(result.get("steps", 0.0), float(apart.max() / steps[name]))
    return result
