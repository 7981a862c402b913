"""The page itself: controls, and what they call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from ..pipelines.sampling import SCHEDULERS
from ..tasks.image_classification import ImageClassification
from .details import Files, layer_norms, picture, show_example, show_mistakes, show_norms
from .drawing import image_input, open_image, show_votes, text_input
from .lab import Lab, Request
from .plot import draw_svg, plot_data
from .questions import Question, list_questions, write_condition

# Seconds between cleaning up, and how old files are then that somebody has uploaded or downloaded.
DELETE_CACHE = (600, 3600)
STATE_SECONDS = 3600
SEEN = '<section class="pd-shown"><h3>What they see</h3>{}</section>'


def static(name: str) -> str:
    """A file of the page."""
    return (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")


def make_theme() -> gr.themes.Base:
    """With the fonts of the system: nothing is fetched from elsewhere."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show a `ValueError` of ours as a message on the page; names of arguments are those of the controls."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error

    return call


def ask(question: Question) -> gr.components.Component:
    """The control of a question."""
    if question.form == "several":
        return gr.CheckboxGroup(list(question.choices), value=question.value, label=question.label)
    if question.form == "one":
        return gr.Dropdown(list(question.choices), value=question.value, label=question.label)
    if question.form == "number":
        step = (question.high - question.low) / 200 or 0.01
        return gr.Slider(question.low, question.high, value=question.value, step=step, label=question.label)
    return gr.Textbox(value=question.value, label=question.label)


class Page:
    """Builds the page of a lab, and answers it.

    Args:
        lab ([`Lab`]): What computes.
    """

    def __init__(self, lab: Lab):
        self.lab, self.files = lab, Files(lab.source.pipeline)
        self.questions = list_questions(lab.source.pipeline.condition_encoder)

    # What the controls call

    def request_of(
        self,
        number: float,
        steps: float,
        truncation: float,
        guidance: float,
        seed: float,
        scheduler: str,
        *answers: Any,
    ) -> Request:
        """The request that the controls make."""
        if None in (number, steps, seed):
            raise ValueError("give the number of networks, steps and a seed.")
        condition = write_condition(self.questions, answers) if guidance else None
        return Request(condition, int(number), int(steps), float(truncation), float(guidance), int(seed), scheduler)

    def generate(self, progress: gr.Progress = gr.Progress(), *controls: Any) -> tuple:  # noqa: B008 - gradio's way
        """Draw networks; what is shown of them, and the request for later."""
        request = self.request_of(*controls)
        progress(0, desc="begin")
        drawn = self.lab.draw(request, lambda share, what: progress(share, desc=what))
        return draw_svg(plot_data(self.lab, drawn)), request, *self._nothing_selected()

    def _nothing_selected(self) -> tuple:
        return "", "", gr.update(value=None, interactive=False), None

    def select(self, request: Request | None, number: float | None) -> tuple:
        """One of the networks: the plot with it, its mistakes, its norms and its file."""
        if request is None:
            raise ValueError("generate networks first.")
        if number is None or not 0 <= int(number) < request.num_samples:
            raise ValueError(f"expected a network from 0 to {request.num_samples - 1}.")
        number, drawn = int(number), self.lab.draw(request)
        return (
            draw_svg(plot_data(self.lab, drawn), number),
            show_mistakes(self.lab, drawn, number),
            f"<h3>Layers of network {number}</h3>{show_norms(layer_norms(self.lab, drawn, number))}",
            gr.update(value=str(self.files.write(drawn, number)), interactive=True),
            number,
        )

    def click(self, request: Request | None, event: gr.EventData) -> tuple:
        """A click on the plot, beside all networks one on nothing."""
        if getattr(event, "network", None) is None:
            return (gr.skip(),) * 5
        return self.select(request, event.network)

    def first_plot(self) -> str:
        """Before anything is generated."""
        return draw_svg(plot_data(self.lab, None))

    def vote(self, request: Request | None, inputs: Any, shown: str = "") -> str:
        """Votes on an input."""
        if request is None:
            raise ValueError("generate networks first; then they vote.")
        return show_votes(self.lab.vote(request, inputs), self.lab.answers_for(request), shown)

    def vote_on_drawing(self, request: Request | None, event: gr.EventData) -> str:
        """Votes on what was drawn."""
        return self.vote_on_image(request, open_image(getattr(event, "image", "")))

    def vote_on_image(self, request: Request | None, image: Any) -> str:
        """Votes on an image, shown as networks see it."""
        inputs = image_input(self.lab, image)
        return self.vote(request, inputs, self._shown(inputs))

    def _shown(self, inputs: Any) -> str:
        image = f'<img src="{picture(self.lab, inputs[0])}" alt="The image as networks see it">'
        return SEEN.format(f"<figure>{image}</figure>")

    def vote_on_upload(self, request: Request | None, path: str | None) -> Any:
        """Votes on an uploaded image."""
        return gr.skip() if path is None else self.vote_on_image(request, open_image(Path(path).read_bytes()))

    def vote_on_text(self, request: Request | None, text: str) -> str:
        """Votes on a sentence."""
        return self.vote(request, text_input(self.lab, text))

    def vote_on_example(self, request: Request | None, place: float | None) -> tuple:
        """Votes on the next test example."""
        place = (int(place or 0)) % len(self.lab.judge.inputs)
        example = show_example(self.lab, place, f"test example {place}")
        inputs = self.lab.judge.inputs[place : place + 1]
        return self.vote(request, inputs, SEEN.format(example)), place + 1

    # The controls

    def build(self) -> gr.Blocks:
        """The page."""
        source = self.lab.source
        title = source.name.rstrip("/")
        blocks = gr.Blocks(title=f"pdiff: {title}", analytics_enabled=False, delete_cache=DELETE_CACHE)
        with blocks:
            state = gr.State(None, time_to_live=STATE_SECONDS)
            gr.Markdown(self._head(title), elem_classes="pd-head")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    answers = [ask(question) for question in self.questions]
                    controls, go = self._controls()
                with gr.Column(scale=3, min_width=300):
                    plot = gr.HTML(js_on_load=static("plot.js"), elem_id="pd-plot", min_height=300)
                    with gr.Row():
                        number = gr.Number(label="Network", precision=0, minimum=0, scale=1, min_width=110)
                        look = gr.Button("Look at it", scale=1, min_width=110)
                        kind = "adapter" if self.files.has_adapters else "safetensors"
                        file = gr.DownloadButton(f"Download ({kind})", interactive=False, scale=2, min_width=160)
            with gr.Row():
                with gr.Column(min_width=300):
                    mistakes = gr.HTML()
                with gr.Column(min_width=300):
                    norms = gr.HTML()
            selected = [plot, mistakes, norms, file, number]
            generated = [plot, state, mistakes, norms, file, number]
            inputs = [*controls, *answers]
            gr.on([go.click], refusing(self.generate), inputs, generated, api_name="generate", show_progress_on=plot)
            plot.click(refusing(self.click), state, selected, api_visibility="private", show_progress="hidden")
            gr.on(
                [look.click, number.submit],
                refusing(self.select),
                [state, number],
                selected,
                api_visibility="private",
                show_progress="hidden",
            )
            if self.lab.judge is not None and self.lab.judge.answers_classes:
                self._voting(state)
            blocks.load(self.first_plot, None, plot, api_visibility="private", show_progress="hidden")
        return blocks

    def _head(self, title: str) -> str:
        pipeline = self.lab.source.pipeline
        base = pipeline.base_model
        of = f" of `{base.name}`" if base is not None else ""
        lines = [
            f"# Networks of {title}",
            f"{pipeline.layout.num_parameters:,} parameters{of}, out of noise. "
            "Click a point to look at a network, or reach it by Tab and the arrow keys.",
        ]
        notes = "\n".join(f"- {note}" for note in self.lab.source.notes)
        return "\n\n".join([*lines, notes])

    def _controls(self) -> tuple[list[gr.components.Component], gr.Button]:
        most = self.lab.max_networks
        number = gr.Slider(1, most, value=min(100, most), step=1, label="Networks")
        steps = gr.Slider(1, 100, value=20, step=1, label="Steps of the denoiser")
        truncation = gr.Slider(0, 1, value=1, step=0.01, label="Truncation: 0 the mean, 1 as sampled")
        label = "Guidance: 1 as learned, more exaggerates the condition, 0 leaves it out"
        guidance = gr.Slider(0, 5, value=1, step=0.1, label=label, visible=bool(self.questions))
        seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
        with gr.Accordion("More", open=False):
            scheduler = gr.Dropdown(list(SCHEDULERS), value="dpmsolver++", label="Scheduler")
        return [number, steps, truncation, guidance, seed, scheduler], gr.Button("Generate", variant="primary")

    def _voting(self, state: gr.State) -> None:
        is_image = isinstance(self.lab.judge.task, ImageClassification)
        gr.Markdown("## Let them vote")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                place = gr.State(0)
                if is_image:
                    canvas = gr.HTML(
                        html_template=static("canvas.html"), js_on_load=static("canvas.js"), elem_id="pd-canvas"
                    )
                    upload = gr.UploadButton("Upload an image", file_types=["image"])
                else:
                    text = gr.Textbox(label="A text", lines=3)
                    send = gr.Button("Vote on it")
                example = gr.Button("Take a test example")
            with gr.Column(scale=3, min_width=300):
                votes = gr.HTML('<p class="pd-note">Generate networks, then draw or choose what they vote on.</p>')
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        if is_image:
            canvas.submit(refusing(self.vote_on_drawing), state, votes, **quiet)
            upload.upload(refusing(self.vote_on_upload), [state, upload], votes, **quiet)
        else:
            gr.on([send.click, text.submit], refusing(self.vote_on_text), [state, text], votes, **quiet)
        example.click(refusing(self.vote_on_example), [state, place], [votes, place], **quiet)
