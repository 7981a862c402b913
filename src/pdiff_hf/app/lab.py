"""What the page computes: networks for a request, where they lie beside the originals, how they vote. No gradio."""

from __future__ import annotations

import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.vectors import Vectors, take_rows
from ..evaluation.baselines import uniform_soup
from ..evaluation.similarity import measure_nearness, wrong_iou
from ..pipelines.inputs import check_counts
from ..pipelines.sampling import SCHEDULERS, make_scheduler
from ..tasks.unseen_tasks import networks_for
from .judge import Judge, Judged
from .sources import Source
from .vote import Vote, take_vote

# Of what was drawn lately, and of one request: 256 MB. What is no longer kept is drawn again when it is asked for.
MAX_BYTES = 2**28
MAX_KEPT = 16
MAX_NETWORKS = 500
# Originals that similarity is measured to; fewer of large networks.
MAX_ORIGINALS = 1000


@dataclass(frozen=True)
class Request:
    """What somebody asks the page for; the same request gives the same networks.

    Args:
        condition (`str`, *optional*): As JSON; of a pipeline with conditions, `None` asks for networks of all.
        num_samples, num_inference_steps, truncation, guidance_scale, seed: See [`PDiffPipeline`].
        scheduler (`str`): One of `SCHEDULERS`.
    """

    condition: str | None = None
    num_samples: int = 100
    num_inference_steps: int = 20
    truncation: float = 1.0
    guidance_scale: float = 1.0
    seed: int = 0
    scheduler: str = "dpmsolver++"

    @property
    def told(self) -> dict[str, Any] | None:
        """The condition."""
        return None if self.condition is None else json.loads(self.condition)


@dataclass(frozen=True)
class Mark:
    """A network, or the mean of some, that is shown beside the points."""

    name: str
    score: float
    similarity: float


@dataclass
class Drawn:
    """Networks of a request.

    Args:
        vectors (`torch.Tensor` of shape `(n, D)`): Their parameters.
        judged ([`Judged`], *optional*): What they are worth; `None` where nothing judges them.
        similarity (`torch.Tensor` of shape `(n,)`): To the nearest original, or without originals to each other.
        marks (`list[Mark]`): The soup of the originals, and the oracle.
        notes (`list[str]`): What the pipeline warned of, such as too few steps.
    """

    request: Request
    vectors: torch.Tensor
    judged: Judged | None
    similarity: torch.Tensor
    marks: list[Mark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Originals:
    """Networks of the dataset: `vectors` `(K, D)`, `judged`, and `similarity` `(K,)` to the nearest other one."""

    vectors: Vectors
    judged: Judged | None
    similarity: torch.Tensor
    soup: torch.Tensor


class Lab:
    """A pipeline that answers requests one at a time; the last are kept, up to `MAX_KEPT` and `MAX_BYTES`.

    Args:
        source ([`Source`]): The pipeline, its originals and its task.
    """

    def __init__(self, source: Source):
        self.source, self.judge = source, None
        self._pipeline, self._lock = source.pipeline, threading.RLock()
        self._drawn: OrderedDict[Request, Drawn] = OrderedDict()
        self._originals: Originals | None = None
        if source.task is not None:
            try:
                self.judge = Judge(source)
            except (ValueError, RuntimeError) as error:
                source.notes.append(f"There is no accuracy: {str(error).splitlines()[0]}")

    @property
    def max_networks(self) -> int:
        """The most networks of one request."""
        return max(1, min(MAX_NETWORKS, MAX_BYTES // (4 * self._pipeline.layout.num_parameters)))

    def similarity_title(self, judged: Judged | None) -> str:
        """What similarity is, of networks that were judged or not."""
        to = "the nearest original" if self.source.dataset is not None else "the nearest other network"
        if judged is not None and judged.wrong is not None:
            return f"similarity of mistakes to {to} (IoU)"
        return f"cosine similarity to {to}"

    def score_title(self, judged: Judged | None) -> str:
        """What the score is."""
        if judged is None or self.judge is None:
            return "norm of the parameters"
        return f"test {self.judge.metric.title}"

    def originals(self) -> Originals | None:
        """The originals, judged once; `None` where they are not here."""
        if self.source.dataset is None:
            return None
        with self._lock:
            if self._originals is None:
                self._originals = self._open_originals()
            return self._originals

    def _open_originals(self) -> Originals:
        vectors = self.source.dataset.vectors()
        soup = uniform_soup(vectors)
        most = max(2, min(MAX_ORIGINALS, MAX_BYTES // (4 * vectors.shape[1])))
        rows = torch.linspace(0, len(vectors) - 1, min(most, len(vectors))).round().long()
        kept = take_rows(vectors, rows)
        judged = None if self.judge is None else self.judge.judge_originals(kept, rows)
        return Originals(kept, judged, similarity_to(kept, judged, kept, judged, exclude_self=True), soup)

    def draw(self, request: Request, report: Callable[[float, str], None] = lambda share, what: None) -> Drawn:
        """The networks of a request, which may be kept from before.

        Args:
            request ([`Request`]): What is asked for.
            report (`Callable`, *optional*): Is told how much is done, from 0 to 1, and what is being done.

        Raises:
            ValueError: the request cannot be served; see [`PDiffPipeline`].
        """
        with self._lock:
            if request in self._drawn:
                self._drawn.move_to_end(request)
                return self._drawn[request]
            drawn = self._draw(request, report)
            self._drawn[request] = drawn
            while len(self._drawn) > 1 and (
                len(self._drawn) > MAX_KEPT or sum(each.vectors.nbytes for each in self._drawn.values()) > MAX_BYTES
            ):
                self._drawn.popitem(last=False)
            return drawn

    def _draw(self, request: Request, report: Callable[[float, str], None]) -> Drawn:
        check_counts(num_samples=request.num_samples)
        if request.num_samples > self.max_networks:
            raise ValueError(f"this page draws up to {self.max_networks} networks at once; ask for fewer.")
        if request.scheduler not in SCHEDULERS:
            raise ValueError(f"expected a scheduler of {', '.join(SCHEDULERS)}, found {request.scheduler!r}.")
        pipeline, steps = self._pipeline, request.num_inference_steps
        check_counts(num_inference_steps=steps)
        trained = pipeline._trained_scheduler
        if steps > trained.config.num_train_timesteps:
            raise ValueError(f"expected up to {trained.config.num_train_timesteps} steps, found {steps}.")
        pipeline.scheduler = make_scheduler(request.scheduler, trained, steps)
        told = {} if request.condition is None else {"condition": request.told}
        if pipeline.condition_encoder is not None:
            told["guidance_scale"] = request.guidance_scale if told else 0.0

        def step_done(_pipe: Any, step: int, _timestep: Any, _tensors: dict) -> dict:
            report(0.8 * (step + 1) / pipeline.num_timesteps, f"step {step + 1} of {pipeline.num_timesteps}")
            return {}

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = pipeline(
                batch_size=request.num_samples,
                num_inference_steps=steps,
                truncation=float(request.truncation),
                generator=torch.Generator().manual_seed(request.seed),
                output_type="pt",
                callback_on_step_end=step_done,
                **told,
            )
        notes = [str(warning.message) for warning in caught if warning.category is UserWarning]
        vectors = found.parameters.float().cpu()
        report(0.85, "test examples")
        judged = None if self.judge is None else self.judge.judge(vectors, request.told)
        originals = self.originals()
        if originals is None:
            similarity = similarity_to(vectors, judged, vectors, judged, exclude_self=True)
            return Drawn(request, vectors, judged, similarity, notes=notes)
        similarity = similarity_to(vectors, judged, originals.vectors, originals.judged)
        return Drawn(request, vectors, judged, similarity, self._marks(request, originals), notes)

    def scores(self, vectors: Vectors, judged: Judged | None) -> torch.Tensor:
        """What is on the axis of scores `(B,)`."""
        if judged is not None:
            return judged.score
        return torch.stack([vectors[row : row + 1].float().norm() for row in range(len(vectors))])

    def _marks(self, request: Request, originals: Originals) -> list[Mark]:
        """The soup of all originals; and the oracle: who knows the task, or the originals' scores on the examples."""
        judged = None if self.judge is None else self.judge.judge(originals.soup, request.told)
        near = similarity_to(originals.soup, judged, originals.vectors, originals.judged)
        marks = [Mark("soup of the originals", self.scores(originals.soup, judged)[0].item(), near[0].item())]
        if judged is None:
            return marks
        if self.judge.answers_classes and self.judge.has_own_tasks:
            trained = self._trained_for(request)
            if trained is not None:
                judged = self.judge.judge(trained, request.told)
                near = similarity_to(trained, judged, originals.vectors, originals.judged)
                name = f"oracle: mean of {len(trained)} trained for this condition"
                marks.append(Mark(name, judged.score.mean().item(), near.mean().item()))
            return marks
        best = int(self.judge.metric.worth(originals.judged.score).argmax())
        name = "oracle: the best original on these examples"
        marks.append(Mark(name, originals.judged.score[best].item(), originals.similarity[best].item()))
        return marks

    def vote(self, request: Request, inputs: torch.Tensor) -> dict[str, Vote]:
        """Votes on one input `(1, …)`: of the generated networks, and of originals and their soup where they are.

        Originals of other tasks have no say: where conditions are tasks, those that were trained for it are asked.
        """
        if self.judge is None or not self.judge.answers_classes:
            raise ValueError("nothing here says what these networks answer, so they cannot vote.")
        groups: dict[str, Vectors] = {"generated": self.draw(request).vectors}
        if (originals := self.originals()) is not None:
            asked = self._trained_for(request) if self.judge.has_own_tasks else originals.vectors
            if asked is not None:
                rows = torch.linspace(0, len(asked) - 1, min(request.num_samples, len(asked))).round().long()
                groups["originals"] = take_rows(asked, rows)
            groups["soup"] = originals.soup
        return {name: take_vote(self.judge.answer(vectors, inputs)) for name, vectors in groups.items()}

    def answers_for(self, request: Request) -> list[str]:
        """What networks of a request answer, in words."""
        told = (request.told or {}).get("classes")
        if not self.judge.has_own_tasks or not isinstance(told, list):
            return self.judge.class_names
        return [f"{name} of {', '.join(map(str, told))}" for name in self.judge.class_names]

    def _trained_for(self, request: Request) -> Vectors | None:
        """Networks of the collection for the task of a request; `None` where nobody trained any, or it names none."""
        told = request.told or {}
        if not isinstance(told.get("classes"), list):
            return None
        return networks_for(self.source.dataset, told)


def similarity_to(
    vectors: Vectors, judged: Judged | None, others: Vectors, of_others: Judged | None, exclude_self: bool = False
) -> torch.Tensor:
    """The similarity `(B,)` of networks to the nearest of others: IoU of their mistakes, else cosine of parameters.

    NaN where there is no other one.
    """
    if judged is None or judged.wrong is None or of_others is None or of_others.wrong is None:
        return measure_nearness(vectors, others, exclude_self=exclude_self).cosine
    found = wrong_iou(judged.wrong, of_others.wrong)
    if exclude_self:
        found.fill_diagonal_(-torch.inf)
    largest = found.max(1).values
    return torch.where(largest.isfinite(), largest, torch.nan)
