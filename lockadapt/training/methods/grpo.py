"""The stage `method: grpo`: TRL's GRPOTrainer on lockadapt's prompts, features, generation and rewards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import GenerationConfig, Trainer
from trl import GRPOConfig, GRPOTrainer

from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.pixels import image_part
from lockadapt.errors import AssemblyError
from lockadapt.models.chat_template import without_thought
from lockadapt.objectives.answer_tokens import model_inputs, stock_forward
from lockadapt.rewards import Reward
from lockadapt.training.methods.arguments import trl_arguments
from lockadapt.training.methods.locked import LockedStage, MethodSetup
from lockadapt.training.methods.rollout import Rollout, prompt_of, writing

BETA = 0.04
"""Weight of the KL from the start of the stage where the recipe names none (arXiv 2402.03300): TRL's own
default, 0, would leave the KL unmeasured."""


class GrpoStage(LockedStage, GRPOTrainer):
    """TRL's GRPOTrainer; a group's answers share the reading of their prompt and image.

    Args:
        setup: of the stage.
        rewards: by name.
        encoder: of the model's processor.

    Raises:
        AssemblyError: the LLM is an encoder-decoder.
        LockadaptError: as `LockedStage`.
    """

    reward_key = "reward"
    measure = "reward of the greedy answer"

    def __init__(self, setup: MethodSetup, rewards: Mapping[str, Reward], encoder: Encoder) -> None:
        if encoder.apart:
            raise AssemblyError("grpo needs a decoder LLM", fix="use a decoder LLM, or dpo")
        self.rewarded = dict(rewards)
        self.prompts = {
            "train": [prompt_of(encoder, row.sample) for row in setup.train],
            "eval": [prompt_of(encoder, row.sample) for row in setup.validation],
        }
        self.rollout = Rollout(setup.model, setup.images, setup.processor.tokenizer)
        self._numbers: list[int] = []
        """Rows of `prompts["train"]` that TRL's tensors are about."""

        def make(given: Mapping[str, Any]) -> None:
            arguments, beta = self._arguments(setup)
            functions: list[Any] = [self._function(*named) for named in self.rewarded.items()]
            GRPOTrainer.__init__(
                self,
                reward_funcs=functions,
                args=arguments,
                train_dataset=_dataset(self.prompts["train"]),
                eval_dataset=_dataset(self.prompts["eval"]) if setup.validation else None,
                **given,
            )
            # Now, as TRL would have copied the adapter: the reference is this model's values at the start.
            self.beta = arguments.beta = beta
            self.ref_model = self.start if beta else None  # type: ignore[assignment]

        LockedStage.__init__(self, setup, make)
        # TRL forbids sampled image tokens, which stand for no image, since 1.16.
        if encoder.image_token_id >= 0:
            self.generation_kwargs["suppress_tokens"] = [encoder.image_token_id]
            self.generation_config.suppress_tokens = [encoder.image_token_id]

    def _arguments(self, setup: MethodSetup) -> tuple[GRPOConfig, float]:
        """Gives TRL's arguments, those of a model without a reference, and the weight of the KL."""
        trl = {"beta": BETA, "num_generations_eval": 1, **setup.method.trl}
        trl.setdefault("max_completion_length", getattr(setup.objective, "max_new_tokens", 32))
        weights = [reward.weight for reward in self.rewarded.values()]
        beta = float(trl.pop("beta") or 0.0)
        tried = GRPOConfig(**trl_arguments(setup.config, trl), reward_weights=weights, beta=0.0)
        # What a generation is used for lies between two checkpoints, so that a resumed run draws the same.
        used = tried.steps_per_generation * tried.num_iterations  # type: ignore[operator]
        every = math.lcm(used, tried.gradient_accumulation_steps) // tried.gradient_accumulation_steps
        keywords = trl_arguments(setup.config, trl, every, best="eval_reward")
        return GRPOConfig(**keywords, reward_weights=weights, beta=0.0), beta

    def scored(self) -> list[float]:
        """The weighed sum of rewards of a greedy answer to each validation row."""
        return [sum(scores) for scores in zip(*self._held_out().values(), strict=True)]

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return _Epochs(super()._get_train_sampler(dataset))

    # --- rewards

    def _function(self, name: str, reward: Reward) -> Callable[..., list[float]]:
        """A reward as TRL calls it, under the name that metrics have."""

        def score(completions: Sequence[str], row: Sequence[int], **_: Any) -> list[float]:
            return self._scores(reward, [self.prompts["train"][number] for number in row], completions)

        score.__name__ = name
        return score

    @staticmethod
    def _scores(reward: Reward, prompts: Sequence[Encoded], answers: Sequence[str]) -> list[float]:
        plain = [answer.strip() if reward.reads_thoughts else without_thought(answer) for answer in answers]
        return reward.score([prompt.sample for prompt in prompts], plain)

    # --- generation

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._numbers = [example["row"] for example in inputs]
        made = super()._generate_and_score_completions(inputs)
        return {**made, "row": torch.tensor(self._numbers, device=self.args.device)}

    def _tokenize_prompts(self, prompts: Any) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompts["train"][number].input_ids.tolist() for number in self._numbers], None, {}

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *given: Any,
        **named: Any,
    ) -> tuple[list[list[int]], None]:
        distinct = [self.prompts["train"][number] for number in self._numbers[::num_generations]]
        training = self.setup.model.training
        with writing(self.setup.model, self.generation_kwargs):
            answers = self.rollout(distinct, num_generations, self.generation_config)
        self.setup.model.train(training)
        return answers, None

    # --- held-out reward

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The reward of greedy answers to the validation rows, as `lockadapt eval` would answer them."""
        weighed = self._held_out()
        means = {name: sum(scores) / len(scores) for name, scores in weighed.items()}
        weights = {name: reward.weight for name, reward in self.rewarded.items()}
        metrics = {f"{metric_key_prefix}_reward": sum(means.values())}
        for name, mean in means.items():
            if weights[name]:
                metrics[f"{metric_key_prefix}_rewards/{name}/mean"] = mean / weights[name]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _held_out(self) -> dict[str, list[float]]:
        """Weighed rewards of greedy answers to the validation rows, by name."""
        prompts = self.prompts["eval"]
        self.setup.model.eval()
        settings = {**self.generation_kwargs, "do_sample": False}
        for name in ("temperature", "top_p", "top_k", "min_p", "cache_implementation"):
            settings.pop(name, None)
        config, answers = GenerationConfig(**settings, disable_compile=True), list[str]()
        size = self.args.per_device_eval_batch_size
        with writing(self.setup.model, settings):
            for start in range(0, len(prompts), size):
                ids = self.rollout(prompts[start : start + size], 1, config)
                answers += self.setup.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return {
            name: [reward.weight * score for score in self._scores(reward, prompts, answers)]
            for name, reward in self.rewarded.items()
            if prompts
        }

    # --- loss

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._numbers = inputs["row"].tolist()
        with stock_forward(self.setup.model):
            return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model: Any, *given: Any, **named: Any) -> Any:
        at_start = model is self.start
        shown = _Shown(self, self.setup.model if at_start else model)
        with self.start.in_place() if at_start else contextlib.nullcontext():
            return super()._get_per_token_logps_and_entropies(shown, *given, **named)


class _Epochs(Sampler[int]):
    """TRL's sampler, whose order of an epoch does not depend on whether the epochs before it were drawn.

    Args:
        sampler: TRL's.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Accelerate's data loader says which one begins; TRL's own order is that of the first."""
        self.sampler.generator.manual_seed(self.sampler.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class _Shown:
    """The model as TRL calls it on tokens, with the images of their rows added: features where they are kept.

    Args:
        stage: whose rows they are.
        model: which is called.
    """

    def __init__(self, stage: GrpoStage, model: Any) -> None:
        self.stage, self.model, self.done = stage, model, 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **named: Any) -> Any:
        """Calls it; rows come in the order of the stage's numbers."""
        stage, setup = self.stage, self.stage.setup
        numbers = stage._numbers[self.done : self.done + len(input_ids)]
        self.done += len(input_ids)
        rows = [stage.prompts["train"][number].images for number in numbers]
        shown = image_part(setup.images, rows, input_ids)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        batch |= Trainer._prepare_inputs(stage, shown)
        return self.model(**model_inputs(setup.model, batch), **named)


def _dataset(prompts: Sequence[Encoded]) -> Dataset:
    """Row numbers, and the questions as TRL's logs show them."""
    texts = [
        next((turn.text for turn in reversed(prompt.sample.turns) if turn.role == "user"), "")
        for prompt in prompts
    ]
    return Dataset.from_dict({"prompt": texts, "row": list(range(len(prompts)))})
