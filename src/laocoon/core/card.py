"""Static facts about a method; documentation, skip decisions and the contract suite are driven by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Capability(str, Enum):
    """What a subject allows. A method's needs are matched against it."""

    GRADIENT = "gradient"  # outputs are differentiable with respect to the (embedded) input
    FEATURES = "features"  # hidden activations can be read
    WEIGHTS = "weights"  # parameters can be read and copies of the subject trained
    GRAPH = "graph"  # a static operator graph is at hand
    QUERY = "query"  # outputs can be asked for
    HARD_LABEL = "hard-label"  # outputs are labels only
    CLEAN = "clean samples"  # the case holds clean samples (offered by the case, not by the subject)
    ARCHITECTURE = "an architecture"  # new networks can be trained (offered by a case of data)
    CANDIDATES = "candidate triggers"  # triggers that a scan recovered (offered by a case of a model)


@dataclass(frozen=True)
class Card:
    """Facts of a published method.

    `misses` is printed beside every NO_EVIDENCE; `quick` are parameter overrides under which the contract
    suite runs the method in seconds; `fails` maps the name of a contract check that is known to fail to
    the reason, in prose (a strict expected failure), in all modalities or, as "check_name/text", in one.
    `goal` is the kind of backdoor that it looks for, or plants.
    """

    name: str
    paper: str
    url: str
    modalities: frozenset[str]
    needs: frozenset[Capability]
    misses: str
    summary: str = ""
    goal: str = "all-to-one"  # or "source-to-target", "all-to-all"; "whole-image": all-to-one, with no patch
    quick: dict[str, Any] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)

    def known_failure(self, check: str, modality: str) -> str | None:
        """Why a contract check is known to fail in a modality; None where it is not."""
        return self.fails.get(f"{check}/{modality}", self.fails.get(check))
