"""Binary masks of all languages, one bit per language.

Each prunable parameter has an integer tensor of its shape, its *code*: bit `i` of an entry is set if language `i` uses
that entry. Overlap, union and density are bit counts. See `PathwayMasks`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from icefall_pathways.files import atomic_write, sha256, write_json
from icefall_pathways.pathways.counting import joint_counts
from icefall_pathways.pathways.granularity import parse_granularity
from icefall_pathways.pathways.header import MasksError, MasksHeader, read_header
from icefall_pathways.pathways.prunable import prunable_parameters

__all__ = ["MAX_LANGUAGES", "MasksError", "MasksHeader", "PathwayMasks", "code_type"]

_CODE_TYPES = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
MAX_LANGUAGES = max(_CODE_TYPES)


@dataclass
class PathwayMasks:
    """The sub-network of each language inside one model.

    Attributes:
      header: Languages in bit order, origin and granularity of the masks.
      codes: One integer tensor per prunable parameter, by the parameter's name, of the parameter's shape.

    Raises:
      MasksError: There is no language, a language is duplicate, or codes have another dtype than `code_type`.
    """

    header: MasksHeader
    codes: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.languages:
            raise MasksError("masks need at least one language")
        if len(set(self.languages)) < len(self.languages):
            raise MasksError(f"duplicate language in {self.languages}: list each language once")
        dtype = code_type(len(self.languages))
        for name, code in self.codes.items():
            if code.dtype != dtype:
                raise MasksError(
                    f"codes of {name} are {code.dtype}: expected {dtype} for {len(self.languages)} languages"
                )

    @classmethod
    def dense(cls, model: nn.Module, languages: Sequence[str], roots: Iterable[str] | None = None) -> "PathwayMasks":
        """Return masks in which every language uses every prunable entry of `model`."""
        roots = ("",) if roots is None else tuple(roots)
        dtype = code_type(len(languages))
        all_languages = _bits(range(len(languages)), dtype)
        codes = {
            name: torch.full(parameter.shape, all_languages, dtype=dtype, device=parameter.device)
            for name, parameter in prunable_parameters(model, roots).items()
        }
        return cls(MasksHeader(tuple(languages), roots=roots), codes)

    @property
    def languages(self) -> tuple[str, ...]:
        """Language tags in the order of their bits."""
        return self.header.languages

    @property
    def names(self) -> list[str]:
        """Names of the masked parameters."""
        return list(self.codes)

    def bit(self, language: str) -> int:
        """Return the index of a language's bit.

        Raises:
          MasksError: The masks have no such language.
        """
        try:
            return self.languages.index(language)
        except ValueError:
            raise MasksError(
                f"no pathway for language {language!r}: the masks hold {', '.join(self.languages)}"
            ) from None

    def mask(self, name: str, language: str) -> Tensor:
        """Return the mask of parameter `name` for a language: bool, of the parameter's shape."""
        code = self.codes[name]
        return code.bitwise_and(_bits([self.bit(language)], code.dtype)).bool()

    def flat_mask(self, names: Iterable[str], language: str) -> Tensor:
        """Return the flattened masks of several parameters, concatenated: bool, 1-dim."""
        codes = torch.cat([self.codes[name].flatten() for name in names])
        return codes.bitwise_and_(_bits([self.bit(language)], codes.dtype)).bool()

    def set_mask(self, name: str, languages: str | Iterable[str], mask: Tensor) -> None:
        """Set the mask of parameter `name` for one or several languages; other languages keep theirs.

        Raises:
          MasksError: `mask` is not bool or has another shape than the parameter, or a language is unknown.
        """
        code = self.codes[name]
        if mask.shape != code.shape or mask.dtype != torch.bool:
            raise MasksError(
                f"mask of {name}: expected bool of shape {tuple(code.shape)}, found {mask.dtype} of {tuple(mask.shape)}"
            )
        languages = [languages] if isinstance(languages, str) else languages
        bits = [self.bit(language) for language in languages]
        other_bits = [bit for bit in range(len(self.languages)) if bit not in bits]
        code.bitwise_and_(_bits(other_bits, code.dtype)).bitwise_or_(mask.to(code.dtype) * _bits(bits, code.dtype))

    def sparsity(self, language: str, name: str | None = None) -> float:
        """Return pruned entries / prunable entries of one parameter, or of all parameters together."""
        names = self.names if name is None else [name]
        kept = sum(int(self.mask(n, language).sum()) for n in names)
        return 1 - kept / sum(self.codes[n].numel() for n in names)

    def _sparsities(self) -> list[float]:
        total = sum(code.numel() for code in self.codes.values())
        return [1 - kept / total for kept in self.counts().diagonal().tolist()]

    def union_density(self) -> float:
        """Return the share of the prunable entries that at least one language uses."""
        used = sum(int(torch.count_nonzero(code)) for code in self.codes.values())
        return used / sum(code.numel() for code in self.codes.values())

    def counts(self) -> Tensor:
        """Count the entries that each pair of languages uses: (languages, languages), int64; see `joint_counts`."""
        return joint_counts(self.codes.values(), len(self.languages))

    def overlaps(self) -> list[list[float]]:
        """Return the intersection over union of each pair of masks, in the order of the bits; 1 if both are empty."""
        counts = self.counts().tolist()
        return [
            [both / either if (either := counts[i][i] + counts[j][j] - both) else 1.0 for j, both in enumerate(row)]
            for i, row in enumerate(counts)
        ]

    def overlap(self, a: str, b: str) -> float:
        """Return the intersection over union of two languages' masks; for several pairs, `overlaps` is faster."""
        return self.overlaps()[self.bit(a)][self.bit(b)]

    def share_mask(self, languages: Sequence[str]) -> bool:
        """Return True if the languages have the same mask (language-agnostic pruning)."""
        all_set = _bits([self.bit(language) for language in languages], code_type(len(self.languages)))
        # The masks are equal where either all or none of these bits are set.
        selected = (code.bitwise_and(all_set) for code in self.codes.values())
        return all(bool(((bits == all_set) | (bits == 0)).all()) for bits in selected)

    def equals(self, other: "PathwayMasks") -> bool:
        """Return True if languages (and their order) and codes are equal; other fields of the header may differ."""
        return (
            self.languages == other.languages
            and self.codes.keys() == other.codes.keys()
            and all(torch.equal(code, other.codes[name]) for name, code in self.codes.items())
        )

    def canonical_language(self, language: str) -> str:
        """Return the first language, in the order of the bits, with the same mask as `language`."""
        earlier = self.languages[: self.bit(language)]
        return next((other for other in earlier if self.share_mask([other, language])), language)

    def subset(self, *names: str) -> "PathwayMasks":
        """Return the masks of some parameters; the codes are shared, not copied."""
        return PathwayMasks(self.header, {name: self.codes[name] for name in names})

    def below(self, prefix: str) -> "PathwayMasks":
        """Return the masks of the parameters whose names start with `prefix`; the codes are shared, not copied."""
        return self.subset(*(name for name in self.names if name.startswith(prefix)))

    def excluding(self, languages: Iterable[str]) -> "PathwayMasks":
        """Return the masks without the entries that any of `languages` uses; these languages have empty masks."""
        bits = [self.bit(language) for language in languages]
        codes = {}
        for name, code in self.codes.items():
            unused = code.bitwise_and(_bits(bits, code.dtype)) == 0
            codes[name] = code * unused
        return PathwayMasks(self.header, codes)

    def restrict(self, languages: Sequence[str]) -> "PathwayMasks":
        """Return the masks of some of the languages, with bits in the order given."""
        dtype = code_type(len(languages))
        codes = {}
        for name, code in self.codes.items():
            codes[name] = torch.zeros(code.shape, dtype=dtype, device=code.device)
            for bit, language in enumerate(languages):
                codes[name] |= self.mask(name, language).to(dtype) * _bits([bit], dtype)
        return PathwayMasks(replace(self.header, languages=tuple(languages)), codes)

    @staticmethod
    def merge(parts: Iterable["PathwayMasks"]) -> "PathwayMasks":
        """Merge the masks of different languages, which must cover the same parameters.

        Parts are consumed one at a time, so a generator that reads them from files needs the memory of only one.

        Raises:
          MasksError: There are no parts, or they cover different parameters, share a language or differ in granularity.
        """
        merged = None
        for part in parts:
            merged = part._copy() if merged is None else merged._append(part)
            del part  # frees its memory before the next part is read
        if merged is None:
            raise MasksError("no masks to merge")
        return merged

    def _copy(self) -> "PathwayMasks":
        return PathwayMasks(self.header, {name: code.clone() for name, code in self.codes.items()})

    def _append(self, part: "PathwayMasks") -> "PathwayMasks":
        """Return these masks merged with `part`; codes change in place, or are replaced if they need a wider dtype."""
        _check_codes({n: c.shape for n, c in self.codes.items()}, part.codes, "the first masks", "other masks")
        if part.header.granularity != self.header.granularity:
            raise MasksError(
                f"masks of granularity {self.header.granularity} ({', '.join(self.languages)}) and of "
                f"{part.header.granularity} ({', '.join(part.languages)}) cannot be merged: "
                "search with the same granularity"
            )
        header = replace(self.header, languages=self.languages + part.languages)
        dtype, old = code_type(len(header.languages)), range(len(self.languages))
        for name, code in self.codes.items():
            if code.dtype != dtype:
                code = code.to(dtype).bitwise_and_(_bits(old, dtype))  # clears the bits of the sign extension
            for bit, language in enumerate(part.languages, len(old)):
                code |= part.mask(name, language).to(dtype).mul_(_bits([bit], dtype))
            self.codes[name] = code
        return PathwayMasks(header, self.codes)

    def to(self, device: torch.device | str) -> "PathwayMasks":
        """Return the same masks on another device."""
        return PathwayMasks(self.header, {name: code.to(device) for name, code in self.codes.items()})

    def check(self, model: nn.Module, languages: Iterable[str] = ()) -> None:
        """Check that the masks cover the prunable parameters of their roots in `model`, and have `languages`.

        Raises:
          MasksError: They do not; the message lists the names or shapes that differ.
        """
        for language in languages:
            self.bit(language)
        try:
            shapes = {name: p.shape for name, p in prunable_parameters(model, self.header.roots).items()}
        except ValueError as error:
            raise MasksError(f"the masks belong to another model: {error}") from error
        missing = [name for name in self.codes if name not in shapes]
        uncovered = [name for name in shapes if name not in self.codes]
        wrong = [
            f"{name} is {tuple(code.shape)} in the masks and {tuple(shapes[name])} in the model"
            for name, code in self.codes.items()
            if name in shapes and shapes[name] != code.shape
        ]
        if missing or uncovered or wrong:
            differences = [f"the model has no prunable parameter {name}" for name in missing]
            differences += [f"the masks lack {name}" for name in uncovered] + wrong
            raise MasksError(
                f"the masks belong to another model ({len(differences)} parameters differ, {len(self.codes)} have "
                f"masks): {'; '.join(differences[:5])}{'; ...' if len(differences) > 5 else ''}. "
                "Use masks of this model, or the model that the masks were searched with"
            )

    def check_not_empty(self) -> None:
        """Check that every language uses at least one entry.

        Raises:
          MasksError: A language uses none.
        """
        for language in self.languages:
            if not any(bool(self.mask(name, language).any()) for name in self.names):
                raise MasksError(
                    f"the mask of {language} is empty, expected weights that the language uses: search or train its "
                    "mask again"
                )

    def check_granularity(self) -> None:
        """Check that every mask consists of groups of the header's granularity.

        Raises:
          MasksError: A mask does not.
        """
        granularity = parse_granularity(self.header.granularity)
        for name, code in self.codes.items():
            if not granularity.matches(code):
                raise MasksError(
                    f"the masks of {name} do not consist of groups of {granularity}, the granularity of their header: "
                    "use the header that belongs to these masks, or repeat the search"
                )

    def save(self, path: Path | str) -> None:
        """Write the codes to `path` (safetensors), and the header to a JSON file of the same stem next to it."""
        path = Path(path)
        header = asdict(self.header) | {
            "sparsity": dict(zip(self.languages, self._sparsities(), strict=True)),
            "prunable": {name: list(code.shape) for name, code in self.codes.items()},
        }
        with atomic_write(path) as temporary:
            save_file({name: code.cpu().contiguous() for name, code in self.codes.items()}, temporary)
            # Write the header first, so that codes never exist without a header.
            write_json(path.with_suffix(".json"), header | {"sha256": sha256(temporary)})

    @classmethod
    def load(cls, path: Path | str) -> "PathwayMasks":
        """Read masks from `path` and the JSON header next to it.

        Raises:
          MasksError: A file is missing or damaged, the two do not belong together, or the masks do not have the
            granularity of the header.
        """
        path = Path(path)
        header_path = path.with_suffix(".json")
        for file in (path, header_path):
            if not file.is_file():
                raise MasksError(f"no masks file {file}: expected {path.name} and {header_path.name} in one folder")
        header, shapes, digest = read_header(header_path)
        try:
            codes = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise MasksError(
                f"{path} is damaged or not a safetensors file ({error}): copy it again or repeat the search"
            ) from error
        if sha256(path) != digest:
            raise MasksError(
                f"{path} is damaged or not the file that {header_path.name} describes (its SHA-256 differs): "
                "copy both again from the search's folder, or repeat the search"
            )
        try:
            _check_codes(shapes, codes, header_path.name, "it")
            masks = cls(header, {name: codes[name] for name in shapes})
            masks.check_granularity()
        except MasksError as error:
            raise MasksError(f"{path}: {error}") from error
        return masks


def code_type(num_languages: int) -> torch.dtype:
    """Return the narrowest integer type with a bit for each language.

    Raises:
      MasksError: There are more languages than any type has bits.
    """
    for bits, dtype in _CODE_TYPES.items():
        if num_languages <= bits:
            return dtype
    raise MasksError(f"{num_languages} languages: masks hold at most {MAX_LANGUAGES}")


def _bits(bits: Iterable[int], dtype: torch.dtype) -> int:
    """Return the integer with these bits set, negative if `dtype` is signed and its sign bit is among them."""
    value, limits = sum(1 << bit for bit in bits), torch.iinfo(dtype)
    return value if value <= limits.max else value - (1 << limits.bits)


def _check_codes(shapes: dict[str, torch.Size], codes: dict[str, Tensor], expected: str, actual: str) -> None:
    differing = [name for name in sorted(set(shapes) | set(codes)) if name not in shapes or name not in codes]
    differing += [name for name, code in codes.items() if name in shapes and shapes[name] != code.shape]
    if differing:
        raise MasksError(f"{actual} does not belong to {expected}: they differ in {json.dumps(differing[:5])}")
