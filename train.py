"""Trains a text-to-SQL policy with GRPO: loads it, evaluates it, trains it, evaluates it again.

    python train.py --lang vi
    python train.py --lang en,de --model DIR --data ROOT --steps 200
    torchrun --nproc-per-node 4 train.py --lang all      # each step's prompts over 4 processes

The algorithm is in grpo/trainer.py: Trainer.train_step; examples/minimal_grpo.py has it on one
page. Where the defaults differ from GRPO as published (DeepSeekMath, arXiv 2402.03300):

    option                default         published   why
    --advantage           centered        group       dividing by the std favours groups that are
                                                      nearly all right or all wrong (Dr. GRPO)
    --loss-aggregation    token           sequence    every token counts the same (DAPO)
    --kl                  k3iw            k3          its gradient is that of KL(policy || ref),
                                                      token by token
    --beta                0.02            0.04        as in the paper, arXiv 2510.13827
    --zero-variance       skip            train       groups without a policy gradient only cost
                                                      time and shrink the others' share
    --lora-rank           32              all weights the reference needs no second model

--recipe grpo sets the published choices but still trains LoRA.
"""

import argparse
import logging
import sys
from contextlib import ExitStack

from encoder import ContrastiveEncoder, SemanticReward
from encoder.device import check_device
from encoder.gold_check import check_on_gold
from grpo.command_line import parse_config
from grpo.config import Config
from grpo.distributed.parallel import Distributed, is_first_to_fail, open_distributed
from grpo.evaluation.measure import Prediction, evaluate_policy, load_suites
from grpo.evaluation.validation import Validation
from grpo.lora import lora_merged
from grpo.memory import memory_errors, print_plan
from grpo.models import load_policy_with_lora, model_dtype, read_tokenizer
from grpo.prompt import PromptSettings, check_context
from grpo.provenance import provenance
from grpo.questions import load_questions
from grpo.rewards import Rewards, is_label_free
from grpo.run import RunFolder
from grpo.trainer import Trainer
from sqlenv import ExecutionVerifier, Sandbox
from sqlenv.errors import exit_code


def train(
    config: Config, folder: RunFolder, distributed: Distributed, device: str, words: list[str]
) -> int:
    """One run; returns the exit code."""
    questions, validation, dev = load_questions(config)
    prompts = {"settings": PromptSettings.of(vars(config)), "max_new_tokens": config.max_new_tokens}
    tokenizer, model_config = read_tokenizer(config.model)
    check_context(config.model, tokenizer, model_config, questions + validation + dev, **prompts)
    # `auto` is measured: the main process decides for all, and config.json keeps it for a resume.
    dtype = model_dtype(config.dtype, device, model_config)
    config.dtype = distributed.all_gather(dtype)[0]
    encoder = ContrastiveEncoder.load(config.encoder).to(device)
    score = {"score": config.semantic_score, "gate": config.semantic_gate}
    semantic = SemanticReward(encoder, target=config.semantic_target, **score)
    with ExitStack() as stack:
        verifier = ExecutionVerifier(stack.enter_context(Sandbox(timeout=config.sql_timeout)))
        limits = {"max_new_tokens": config.max_new_tokens, "timeout": config.reward_timeout}
        limits["overlong_buffer"] = config.overlong_buffer
        rewards = Rewards(verifier, semantic, config.reward, **limits)
        stack.callback(rewards.close)
        policy, distributed = load_policy_with_lora(config, device, distributed)
        questions = folder.usable_questions(questions, validation + dev, verifier)
        if config.reward.get("semantic") and (check := check_on_gold(semantic, questions)):
            print(f"semantic reward: {check.report(config.data)}")
        if is_label_free(config.reward, config.semantic_target):
            print("no reward looks at gold SQL: wrong SQL may score above right SQL")
        with distributed.main_first():  # builds the suites that are missing in the cache
            suites = load_suites(verifier.sandbox, dev)
            validation_suites = load_suites(verifier.sandbox, validation)
            if config.reward.get("test_suite"):
                rewards.suites = load_suites(verifier.sandbox, questions)
        trainer = Trainer(policy, rewards, questions, config, distributed)
        sets = {"train": questions, "validation": validation, "dev": dev}
        folder.start(trainer, provenance(words, device, distributed.size, sets))
        print(
            f"{folder.path}: {len(questions)} training and {len(dev)} dev questions "
            f"({config.lang}), {trainer.total_steps} steps of {config.prompts_per_step} prompts x "
            f"{config.group_size} completions, {config.dtype}"
        )

        def measure(label: str) -> list[Prediction]:
            own, metric = [dev[i] for i in distributed.split(len(dev))], SemanticReward(encoder)
            options = prompts | {"progress": label, "suites": suites}
            options["batch_size"] = config.evaluated_together(distributed.size)
            with lora_merged(policy.model):
                predictions = evaluate_policy(policy, verifier, metric, own, **options)
            return distributed.all_gather_list(predictions)

        before = folder.measure_before(measure)
        options = policy, verifier, validation_suites, config, distributed
        if not folder.train(trainer, Validation(validation, *options) if validation else None):
            return 130
        folder.use_best(trainer)
        folder.finish(before, measure("after"))
    return 0


def run(config: Config, arguments: argparse.Namespace) -> int:
    if arguments.plan is not None:
        check_device(config.device)
        print_plan(config, arguments.plan)
        return 0
    with open_distributed(config.device) as (distributed, device):
        with memory_errors(config.micro_batch):
            with RunFolder(config, distributed, arguments.output, arguments.resume) as folder:
                return train(config, folder, distributed, device, arguments.words)


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    return exit_code(lambda: run(*parse_config(__doc__, argv)), is_first_to_fail)


if __name__ == "__main__":
    sys.exit(main())
