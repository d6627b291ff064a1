"""Hostile values and small changes to good ones, all drawn from one generator so that a seed repeats them."""

import copy
import json
import math
from random import Random
from typing import Any

import torch

_INTEGERS = (0, 1, 2, 3, 5, 8, 16, 255, -1, -7, 2**15, 2**31, 2**63, 2**64, 10**30, -(10**12))
_FLOATS = (0.0, -0.0, 0.5, 1.0, 1e-300, 1e308, -1.5, math.nan, math.inf, -math.inf)
_WORDS = (
    "", " ", "none", "null", "true", "gct", "se", "resnet20", "inner", "\0", "a\0b", "é ü 猫", "\U0001f408", "\u202eabc",
    "../../up", "/", "//", ".", "..", "~", "-", "--help", "%s%n%x", "{0.__class__}", "${HOME}", "$(id)", "`id`", "; id",
    "a" * 5000, "\n", "a\r\nb", "\ud800", "1e400", "9" * 5000, "0x10", "1/0", "1/3", "7x8", "0x0", "<script>alert(1)</script>",
    "gct:", "gct@", "@", ":", "+", ",", "=", "a=b=c", "hub:", "hf-hub:", "timm:", "local-dir:", "{seed}", "[", "(", "\\", "*", "(a+)+$",
)  # fmt: skip


def payloads(canary: str) -> list[str]:
    """Return strings that write the canary if code evaluates, formats, renders or runs them."""
    python = f"__import__('pathlib').Path({canary!r}).write_text('x')"
    return [
        python,
        f"{{{{ {python} }}}}",
        f"$(touch {canary})",
        f"`touch {canary}`",
        f"; touch {canary} #",
        f"| touch {canary}",
        f"!!python/object/apply:os.system ['touch {canary}']",
        "!!python/name:os.system",
        f"{{{{ self.__init__.__globals__.__builtins__.open({canary!r}, 'w') }}}}",
    ]


class Hostile:
    """A source of values for one input."""

    def __init__(self, rng: Random, canary: str) -> None:
        self.rng = rng
        self._payloads = payloads(canary)

    def word(self) -> str:
        """Return a string."""
        kind = self.rng.random()
        if kind < 0.2:
            return self.rng.choice(self._payloads)
        if kind < 0.8:
            return self.rng.choice(_WORDS)
        return "".join(
            chr(self.rng.choice((self.rng.randrange(32, 127), self.rng.randrange(1, 0x3000))))
            for _ in range(self.rng.randrange(20))
        )

    def plain(self, depth: int = 0) -> Any:
        """Return a value that JSON or YAML can hold."""
        kind = self.rng.randrange(9 if depth < 3 else 6)
        if kind == 0:
            return self.rng.choice((None, True, False))
        if kind in {1, 2}:
            return self.rng.choice(_INTEGERS)
        if kind == 3:
            return self.rng.choice(_FLOATS)
        if kind in {4, 5}:
            return self.word()
        if kind in {6, 7}:
            return [self.plain(depth + 1) for _ in range(self.rng.randrange(4))]
        return {self.word(): self.plain(depth + 1) for _ in range(self.rng.randrange(4))}

    def value(self) -> Any:
        """Return any Python value."""
        kind = self.rng.random()
        if kind < 0.7:
            return self.plain()
        if kind < 0.85:
            return self.tensor()
        return self.rng.choice(
            (b"", b"\0\xff", (), (1, 2), (3, "x"), {1, 2}, complex(1, 2), object(), int, len, torch.float16, torch.nn.ReLU(),
             torch.nn.Conv2d, torch.nn.Conv2d(3, 4, 3), range(3), lambda *_: None, {1: 2}, [torch.zeros(1)])
        )  # fmt: skip

    def tensor(self) -> torch.Tensor:
        """Return a tensor of odd shape, type and values."""
        shape = [self.rng.choice((0, 1, 2, 3, 4, 8)) for _ in range(self.rng.randrange(6))]
        types = (
            torch.float32,
            torch.float32,
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.uint8,
            torch.bool,
            torch.complex64,
        )
        return torch.full(shape, self.rng.choice((0, 1, 2, 1)), dtype=self.rng.choice(types))

    def options(self, names: list[str], most: int = 3) -> dict[str, Any]:
        """Return some of these keyword arguments with hostile values."""
        return {name: self.value() for name in self.rng.sample(names, min(len(names), self.rng.randrange(most + 1)))}

    def changed_json(self, content: Any) -> Any:
        """Return a copy of plain values in which one to three places are changed."""
        content = copy.deepcopy(content)
        for _ in range(self.rng.randrange(1, 4)):
            content = self._changed(content)
        return content

    def _changed(self, content: Any) -> Any:
        if not isinstance(content, dict | list) or not content or self.rng.random() < 0.03:
            return self._other(content)
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = self.rng.choice(keys)
        kind = self.rng.random()
        if kind < 0.45:
            content[key] = self._changed(content[key])
        elif kind < 0.6:
            del content[key]
        elif kind < 0.7 and isinstance(content, dict):
            content[self.word()] = content.pop(key)
        elif kind < 0.8:
            content[key] = [content[key]] if self.rng.random() < 0.5 else {"a": content[key]}
        else:
            content[key] = self._other(content[key])
        return content

    def _other(self, value: Any) -> Any:
        """Return a replacement for a leaf: a similar value, or one of another kind."""
        if isinstance(value, str) and self.rng.random() < 0.4:
            return self.changed_text(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and self.rng.random() < 0.4:
            return self.rng.choice((value + 1, -value, value * 1000, value * 10**9, value + 0.5, str(value)))
        return self.plain()

    def as_json(self, content: Any) -> bytes:
        """Write values as JSON, sometimes as invalid JSON."""
        kind = self.rng.random()
        if kind < 0.02:
            return b"[" * 100_000
        if kind < 0.03:
            return b'{"a":' * 5000 + b"1" + b"}" * 5000
        if kind < 0.04:
            return b"9" * 10_000
        text = json.dumps(content, default=str).encode("utf-8", "surrogatepass")
        return self.changed_bytes(text) if self.rng.random() < 0.2 else text

    def changed_text(self, text: str) -> str:
        """Return a text with a few characters or parts changed."""
        for _ in range(self.rng.randrange(1, 4)):
            at = self.rng.randrange(len(text) + 1)
            end = min(len(text), at + self.rng.randrange(6))
            text = (
                text[:at]
                + self.rng.choice((
                    "",
                    self.word()[:40],
                    text[at:end] * 2,
                    self.rng.choice(":=,+@/. \n\t{}[]#&*!|>'\"%"),
                ))
                + text[end:]
            )
        return text

    def changed_bytes(self, content: bytes) -> bytes:
        """Return bytes with a few changed, taken out, put in, doubled or cut off."""
        data = bytearray(content)
        for _ in range(self.rng.choice((1, 1, 2, 4, 16))):
            at = self.rng.randrange(len(data) + 1)
            kind = self.rng.randrange(7)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << self.rng.randrange(8)
            elif kind == 1:
                del data[at : at + self.rng.choice((1, 2, 8, 100))]
            elif kind == 2:
                data[at:at] = self.rng.randbytes(self.rng.choice((1, 2, 8, 100)))
            elif kind == 3:
                data[at:at] = data[at : at + self.rng.choice((4, 64))]
            elif kind == 4:
                del data[at:]
            elif kind == 5:
                data[at : at + 4] = self.rng.choice((
                    b"\xff\xff\xff\xff",
                    b"\0\0\0\0",
                    b"\x7f\xff\xff\xff",
                    b"\x80\0\0\0",
                ))
            else:
                data[at : at + 8] = self.rng.choice((b"\xff" * 8, b"\0" * 8))
        return bytes(data)
