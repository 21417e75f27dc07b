import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregation.momentum import Momentum
from coordinator.aggregation.order_statistics import Median, TrimmedMean
from coordinator.aggregation.rule import Rule
from coordinator.aggregation.weighted_mean import WeightedMean
from coordinator.jobs.job_file import parse_job, read_job
from coordinator.jobs.job_spec import (
    Clients,
    Evaluate,
    JobSpec,
    Model,
    Rounds,
    Stop,
    Tensor,
)
from coordinator.jobs.train_spec import Group, Optimizer, Schedule, Train
from headwater.batch import TensorSignature
from headwater.errors import JobFileError
from headwater.preparation import Image, Text

JOB = """\
name = "cifar10-lenet"
dataset = "cifar10"
seed = 1

[model]
factory = "model:Net"
loss = "cross_entropy"
metrics = ["accuracy"]
input = { shape = [3, 32, 32], dtype = "float32" }
target = { shape = [], dtype = "int64" }

[train]
optimizer = { name = "sgd", learning_rate = 0.01, momentum = 0.9 }
local_epochs = 1
batch_size = 32
optimizer_state = "reset"

[rounds]
count = 20
cohort = 4
over_selection = 1.0
quorum = 3
deadline_seconds = 120
evaluate = { every = 1, on = ["clients", "coordinator"] }
stop = { metric = "accuracy", patience = 5, minimum_change = 0.001 }

[clients]
where = "site == 'north' and memory_gib >= 2"
"""


@pytest.fixture
def job() -> str:
    return JOB


def without(job: str, line_start: str) -> str:
    kept = [line for line in job.splitlines() if not line.startswith(line_start)]
    assert len(kept) < len(job.splitlines())
    return "\n".join(kept)


def faults(text: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        parse_job(text, "job.toml")
    return str(caught.value).splitlines()


def test_the_whole_file(job: str) -> None:
    spec = parse_job(job, "job.toml")
    assert spec == JobSpec(
        name="cifar10-lenet",
        dataset="cifar10",
        seed=1,
        model=Model(
            factory="model:Net",
            loss="cross_entropy",
            metrics=("accuracy",),
            input=Tensor(shape=(3, 32, 32), dtype="float32"),
            target=Tensor(shape=(), dtype="int64"),
        ),
        train=Train(
            optimizer=Optimizer(name="sgd", learning_rate=0.01, momentum=0.9),
            local_epochs=1,
            batch_size=32,
            optimizer_state="reset",
        ),
        rounds=Rounds(
            count=20,
            cohort=4,
            over_selection=1.0,
            quorum=3,
            deadline_seconds=120.0,
            evaluate=Evaluate(every=1, on=("clients", "coordinator")),
            stop=Stop(metric="accuracy", patience=5, minimum_change=0.001, mode="max"),
        ),
        clients=Clients(where="site == 'north' and memory_gib >= 2"),
    )
    assert spec.model.input_signatures == (TensorSignature("x", (3, 32, 32), "float32"),)
    assert spec.model.target_signatures == (TensorSignature("y", (), "int64"),)


def test_defaults(job: str) -> None:
    for line in (
        "seed", "metrics", "optimizer_state", "over_selection", "quorum", "deadline", "evaluate",
        "stop", "[clients]", "where",
    ):  # fmt: skip
        job = without(job, line)
    spec = parse_job(job, "job.toml")
    assert spec.seed == 0
    assert spec.model.metrics == ()
    assert spec.train.optimizer_state == "reset"
    assert spec.rounds.quorum == 4
    assert spec.rounds.over_selection == 1.0
    assert spec.rounds.deadline_seconds == 600.0
    assert spec.rounds.evaluate == Evaluate(every=1, on=("clients",))
    assert spec.rounds.stop is None
    assert spec.clients.where == ""


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ("", WeightedMean()),
        ('rule = "weighted_mean"', WeightedMean()),
        ('rule = "median"', Median()),
        ('rule = "trimmed_mean"\ntrim = 0.34', TrimmedMean(0.34)),
    ],
)
def test_the_rule_of_aggregation(job: str, table: str, rule: Rule) -> None:
    spec = parse_job(f"{job}\n[aggregation]\n{table}", "job.toml")
    assert spec.aggregation.chosen == rule
    assert JobSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("keys", "optimizer"),
    [
        ('name = "momentum"', Momentum(1.0, 0.9, False)),
        ('name = "momentum", momentum = 0, learning_rate = 0.5', Momentum(0.5, 0.0, False)),
        ('name = "momentum", nesterov = true, learning_rate = 0.7', Momentum(0.7, 0.9, True)),
    ],
)
def test_the_server_optimizer(job: str, keys: str, optimizer: Momentum) -> None:
    assert parse_job(job, "job.toml").aggregation.optimizer is None
    spec = parse_job(f"{job}\n[aggregation]\nserver_optimizer = {{ {keys} }}", "job.toml")
    assert spec.aggregation.optimizer == optimizer
    assert JobSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_it_survives_json(job: str) -> None:
    spec = parse_job(job, "job.toml")
    assert JobSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_several_inputs_have_names_of_their_own(job: str) -> None:
    job = job.replace(
        'input = { shape = [3, 32, 32], dtype = "float32" }',
        'inputs = [{ shape = [4], dtype = "float32" },\n'
        '  { shape = [], dtype = "int64", maximum = 9, name = "kind" }]',
    )
    spec = parse_job(job, "job.toml")
    assert spec.model.input_signatures == (
        TensorSignature("x0", (4,), "float32"),
        TensorSignature("kind", (), "int64", 9),
    )
    assert JobSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("sgd", "", {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}),
        ("sgd", ", momentum = 0.9, nesterov = true",
         {"momentum": 0.9, "dampening": 0.0, "nesterov": True, "weight_decay": 0.0}),
        ("adam", ", betas = [0.5, 0.9]",
         {"betas": (0.5, 0.9), "epsilon": 1e-8, "weight_decay": 0.0, "amsgrad": False}),
        ("adamw", "",
         {"betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.01, "amsgrad": False}),
        ("adagrad", ", initial_accumulator = 0.1",
         {"learning_rate_decay": 0.0, "initial_accumulator": 0.1, "epsilon": 1e-10,
          "weight_decay": 0.0}),
        ("rmsprop", ", centered = true",
         {"alpha": 0.99, "epsilon": 1e-8, "momentum": 0.0, "centered": True, "weight_decay": 0.0}),
    ],
)  # fmt: skip
def test_optimizer_settings(job: str, name: str, given: str, expected: object) -> None:
    job = job.replace(
        '"sgd", learning_rate = 0.01, momentum = 0.9', f'"{name}", learning_rate = 1{given}'
    )
    optimizer = parse_job(job, "job.toml").train.optimizer
    assert (optimizer.name, optimizer.learning_rate) == (name, 1.0)
    assert optimizer.settings == expected


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("loss", "min")])
def test_the_mode_of_stopping_follows_from_the_metric(job: str, metric: str, mode: str) -> None:
    stop = parse_job(
        job.replace('metric = "accuracy"', f'metric = "{metric}"'), "job.toml"
    ).rounds.stop
    assert stop is not None
    assert stop.mode == mode


def test_what_becomes_of_stored_values_is_in_the_signatures(job: str) -> None:
    images = TENSOR.replace(
        "}",
        ", image = { mean = [0, 0.5, 1], standard_deviation = [1, 2, 3], flip = "
        '"horizontal", crop_padding = 4 } }',
    )
    target = 'target = { shape = [], dtype = "int64", labels = ["cat", "dog"] }'
    spec = parse_job(
        job.replace(TENSOR, images).replace('target = { shape = [], dtype = "int64" }', target),
        "job.toml",
    )
    assert spec.model.input_signatures == (
        TensorSignature(
            "x", (3, 32, 32), "uint8",
            image=Image((0.0, 0.5, 1.0), (1.0, 2.0, 3.0), "horizontal", 4),
        ),
    )  # fmt: skip
    assert spec.model.target_signatures == (
        TensorSignature("y", (), "int64", 2, labels=("cat", "dog")),
    )
    assert JobSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    text = 'input = { shape = [8], dtype = "int64", text = { characters = "\\nab", skip = 1 } }'
    spec = parse_job(job.replace(TENSOR, text), "job.toml")
    assert spec.model.input_signatures == (
        TensorSignature("x", (8,), "int64", 3, text=Text("\nab", skip=1)),
    )


def _added(lines: str) -> tuple[str, str]:
    """A replacement that adds lines to `[train]`, from line 17 on."""
    return 'optimizer_state = "reset"\n', f'optimizer_state = "reset"\n{lines}\n'


def test_what_else_the_step_does(job: str) -> None:
    old, new = _added(
        'schedule = { name = "cosine", warmup_rounds = 2, final_scale = 0.1 }\n'
        'groups = [{ parameters = "*.bias", weight_decay = 0 }, { parameters = "head.*" }]\n'
        "clip_value = 0.5\nproximal = 0.01\nmicro_batch_size = 8"
    )
    spec = parse_job(job.replace(old, new), "job.toml")
    assert spec.train.schedule == Schedule(name="cosine", warmup_rounds=2, final_scale=0.1)
    assert spec.train.groups == (
        Group(parameters="*.bias", weight_decay=0.0),
        Group(parameters="head.*"),
    )
    assert (spec.train.clip_value, spec.train.proximal) == (0.5, 0.01)
    assert JobSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


TENSOR = 'input = { shape = [3, 32, 32], dtype = "float32" }'
NAME_RULE = "1 to 63 lower-case letters, digits and hyphens, a letter or digit first and last"


def _aggregated(keys: str) -> tuple[str, str]:
    """The job file with a table `[aggregation]` on line 27."""
    return "[clients]", f"[aggregation]\n{keys}\n[clients]"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("quorum = 3", "quorum = 9", "22: [rounds] quorum = 9: at most the cohort (4)"),
        ("quorum = 3", "quorum = 0", "22: [rounds] quorum = 0: at least 1"),
        ("cohort = 4", 'cohort = "4"',
         '20: [rounds] cohort = "4": a whole number, at least 1, not a text'),
        ("cohort = 4", "cohort = 4.0",
         "20: [rounds] cohort = 4.0: a whole number, at least 1, not a number"),
        ("count = 20", "count = true",
         "19: [rounds] count = true: a whole number, at least 1, not true or false"),
        ("count = 20", f"count = {10**30}",
         f"19: [rounds] count = {10**30}: at least 1"),
        ("over_selection = 1.0", "over_selection = 0.5",
         "21: [rounds] over_selection = 0.5: at least 1 and at most 10"),
        ("deadline_seconds = 120", "deadline_seconds = inf",
         "23: [rounds] deadline_seconds = Infinity: above 0 and at most 2592000"),
        ('"clients", "coordinator"', '"client"',
         '24: [rounds] evaluate.on[0] = "client": one of "clients", "coordinator"'),
        ("every = 1", "every = [1]",
         "24: [rounds] evaluate.every = [1]: a whole number, at least 1, not a list"),
        ("evaluate = { every = 1, on = [\"clients\", \"coordinator\"] }", "evaluate = { on = [] }",
         "25: [rounds] stop: needs an evaluation: evaluate.on is empty"),
        ('metric = "accuracy"', 'metric = "f1"',
         '25: [rounds] stop.metric = "f1": one of loss, accuracy'),
        ('stop = { metric = "accuracy", patience = 5, minimum_change = 0.001 }',
         'guard = { metric = "f1", tolerance = 0.1 }',
         '25: [rounds] guard.metric = "f1": one of loss, accuracy'),
        ("deadline_seconds", "deadline",
         '23: [rounds] deadline = 120: unknown key; did you mean "deadline_seconds"? allowed: '
         "count, cohort, over_selection, quorum, deadline_seconds, grace_seconds, without_quorum, "
         "extensions, late, largest_staleness, largest_norm, evaluate, stop, guard"),
        ("[clients]", "[client]",
         '27: [client]: unknown key; did you mean "clients"? allowed: name, dataset, seed, model, '
         "train, rounds, aggregation, updates, clients, retention"),
        ("seed = 1", "seed = -1", f"3: seed = -1: at least 0 and at most {2**63 - 1}"),
        ('"cifar10-lenet"', '"CIFAR 10"', f'1: name = "CIFAR 10": {NAME_RULE}'),
        ('"model:Net"', '"model.Net"',
         '6: [model] factory = "model.Net": "module:name", such as "model:Net"'),
        ('"cross_entropy"', '"cross-entropy"',
         '7: [model] loss = "cross-entropy": a name or "module:function"'),
        ('["accuracy"]', '["accuracy", "model:accuracy"]',
         '8: [model] metrics = ["accuracy", "model:accuracy"]: each metric once (they are recorded '
         "by the name after the colon)"),
        ('["accuracy"]', '["accuracy", "loss"]',
         '8: [model] metrics = ["accuracy", "loss"]: "loss" is recorded anyhow and no metric'),
        ("[3, 32, 32]", "[3, -32, 32]", "9: [model] input.shape[1] = -32: at least 1"),
        ("[3, 32, 32]", "3",
         "9: [model] input.shape = 3: a list of whole numbers, each at least 1, not a "
         "whole number"),
        ('dtype = "float32" }', 'dtype = "float16" }',
         '9: [model] input.dtype = "float16": one of "float32", "int64"'),
        ('dtype = "float32" }', 'dtype = "float32", maximum = 3 }',
         "9: [model] input.maximum = 3: only where dtype is int64"),
        (TENSOR, TENSOR.replace("}", ", image = { mean = [0.5] } }"),
         "9: [model] input.image: mean has 1 values for 3 channels"),
        (TENSOR, TENSOR.replace("}", ", image = { mean = [125.0, 0, 0] } }"),
         "9: [model] input.image.mean[0] = 125.0: at least 0 and at most 1"),
        (TENSOR, TENSOR.replace("}", ", image = { crop_padding = 32 } }"),
         "9: [model] input.image: crop_padding is 32; it must be less than the height and the "
         "width (32 and 32), or a window could miss the image"),
        (TENSOR, TENSOR.replace("}", ', image = { flip = "vertical" } }'),
         '9: [model] input.image.flip = "vertical": one of "horizontal"'),
        (TENSOR, TENSOR.replace("}", ", image = { size = [32, 32] } }"),
         "9: [model] input.image.size = [32, 32]: unknown key; allowed: mean, standard_deviation, "
         "flip, crop_padding"),
        (TENSOR, 'input = { shape = [3072], dtype = "float32", image = {} }',
         "9: [model] input.image: images have the shape [channels, height, width] with 1, 3 or 4 "
         "channels, not [3072]"),
        (TENSOR, 'input = { shape = [3, 32, 32], dtype = "int64", image = {} }',
         "9: [model] input.image: only where dtype is float32"),
        (TENSOR, TENSOR.replace("}", ', image = {}, labels = ["a"] }'),
         '9: [model] input.labels = ["a"]: only one of image, text, labels is allowed'),
        (TENSOR, TENSOR.replace("}", ', text = { characters = "ab" } }'),
         "9: [model] input.text: only where dtype is int64"),
        (TENSOR, 'input = { shape = [9], dtype = "int64", text = { characters = "abca" } }',
         "9: [model] input.text: characters holds 'a' twice"),
        (TENSOR, 'input = { shape = [9], dtype = "int64", text = { characters = "" } }',
         '9: [model] input.text.characters = "": at least one character'),
        (TENSOR, 'input = { shape = [9], dtype = "int64", text = { characters = "ab", '
         'unknown = "c" } }',
         "9: [model] input.text: unknown = 'c' is not one character of the table"),
        (TENSOR, 'input = { shape = [9], dtype = "int64", text = { characters = "ab", '
         'padding = "ab" } }',
         '9: [model] input.text.padding = "ab": one character'),
        (TENSOR, 'input = { shape = [], dtype = "int64", labels = ["a", "b", "a"] }',
         "9: [model] input.labels = [\"a\", \"b\", \"a\"]: labels holds 'a' twice"),
        (TENSOR, 'input = { shape = [], dtype = "int64", labels = [] }',
         "9: [model] input.labels = []: at least one label"),
        (TENSOR, 'input = { shape = [], dtype = "int64", maximum = 1, labels = ["a", "b"] }',
         '9: [model] input.labels = ["a", "b"]: maximum is 1 with 2 labels'),
        (TENSOR, "",
         '5: [model]: input is missing: such as input = { shape = [3], dtype = "float32" }, or '
         "inputs with a list of them"),
        (TENSOR, TENSOR + '\ninputs = [{ shape = [3], dtype = "float32" }]',
         '10: [model] inputs = [{"shape": [3], "dtype": "float32"}]: exactly one of input and '
         "inputs is allowed"),
        (TENSOR, 'input = { shape = [3], dtype = "float32", name = "y" }',
         '5: [model]: several inputs or targets are named "y": each needs its own'),
        (TENSOR, TENSOR + '\nstart = "digits"',
         '10: [model] start = "digits": "JOB@VERSION", "JOB@latest" or the path of a .safetensors '
         "file"),
        ('"sgd"', '"lion"',
         '13: [train] optimizer.name = "lion": one of "sgd", "adam", "adamw", "adagrad", '
         '"rmsprop"'),
        ('"sgd"', '"adam"',
         "13: [train] optimizer.momentum = 0.9: adam has only betas, epsilon, weight_decay, "
         "amsgrad, learning_rate"),
        ("momentum = 0.9", "dampening = 0.5",
         "13: [train] optimizer.dampening = 0.5: only with momentum above 0"),
        ("momentum = 0.9", "momentum = 1.0",
         "13: [train] optimizer.momentum = 1.0: at least 0 and below 1"),
        ("momentum = 0.9", "nesterov = true",
         "13: [train] optimizer.nesterov = true: only with momentum above 0 and without "
         "dampening"),
        ("momentum = 0.9", "betas = [0.9]",
         "13: [train] optimizer.betas = [0.9]: exactly 2 values"),
        ("learning_rate = 0.01", "learning_rate = nan",
         "13: [train] optimizer.learning_rate = NaN: above 0"),
        ("local_epochs = 1", "",
         "12: [train]: local_epochs or local_steps is missing"),
        ("local_epochs = 1", "local_epochs = 1\nlocal_steps = 1",
         "15: [train] local_steps = 1: exactly one of local_epochs and local_steps is allowed"),
        ("batch_size = 32", "", "12: [train] batch_size: missing; a whole number, at least 1"),
        (*_added('schedule = { name = "warm" }'),
         '17: [train] schedule.name = "warm": one of "constant", "cosine", "linear", "step", '
         '"exponential"'),
        (*_added('schedule = { name = "step", final_scale = 0.1 }'),
         "17: [train] schedule.final_scale = 0.1: step has only factor, every_rounds, "
         "warmup_rounds"),
        (*_added('schedule = { name = "constant", warmup_rounds = 20 }'),
         "17: [train] schedule.warmup_rounds = 20: below rounds.count (20)"),
        (*_added("groups = [{ weight_decay = 0 }]"),
         "17: [train] groups[0].parameters: missing; a text"),
        (*_added('groups = [{ parameters = "*", learning_rate_scale = -1 }]'),
         "17: [train] groups[0].learning_rate_scale = -1: at least 0"),
        (*_added("clip_norm = 0"), "17: [train] clip_norm = 0: above 0"),
        (*_added("clip_norm = 1\nclip_value = 1"),
         "18: [train] clip_value = 1: exactly one of clip_norm and clip_value is allowed"),
        (*_added("proximal = 0"), "17: [train] proximal = 0: above 0"),
        (*_added("micro_batch_size = 64"),
         "17: [train] micro_batch_size = 64: at most the batch_size (32)"),
        (TENSOR, TENSOR + '\ncall = "kwargs"',
         '10: [model] call = "kwargs": one of "positional", "keywords", "dictionary"'),
        (TENSOR, TENSOR + '\nweight = "y"',
         '5: [model]: several inputs or targets are named "y": each needs its own'),
        ('"reset"', '"forget"',
         '16: [train] optimizer_state = "forget": one of "reset", "keep"'),
        (*_aggregated('rule = "mean"'),
         '28: [aggregation] rule = "mean": one of "weighted_mean", "median", "trimmed_mean"'),
        (*_aggregated('rule = "median"\ntrim = 0.2'),
         "29: [aggregation] trim = 0.2: only for trimmed_mean; the rule is median"),
        (*_aggregated("trim = 0.2"),
         "28: [aggregation] trim = 0.2: only for trimmed_mean; the rule is weighted_mean"),
        (*_aggregated('rule = "trimmed_mean"\ntrim = 0.5'),
         "29: [aggregation] trim = 0.5: above 0 and below 0.5"),
        (*_aggregated('rule = "trimmed_mean"\ntrim = 0'),
         "29: [aggregation] trim = 0: above 0 and below 0.5"),
        (*_aggregated('rule = "trimmed_mean"\ntrim = 0.3'),
         "29: [aggregation] trim = 0.3: 0.3 of 3 updates cuts none: take a larger trim, or at "
         "least 4 updates (the fewest that a round commits)"),
        (*_aggregated('rule = "trimmed_mean"'),
         "27: [aggregation] trim: 0.1 of 3 updates cuts none: take a larger trim, or at least 10 "
         "updates (the fewest that a round commits)"),
        (*_aggregated('rule = "median"\nserver_optimizer = { name = "momentum" }'),
         "29: [aggregation] server_optimizer: only with weighted_mean; the rule is median"),
        (*_aggregated('server_optimizer = { name = "adam" }'),
         '28: [aggregation] server_optimizer.name = "adam": one of "momentum"'),
        (*_aggregated('server_optimizer = "momentum"'),
         '28: [aggregation] server_optimizer = "momentum": a table with name, learning_rate, '
         "momentum, nesterov, not a text"),
        (*_aggregated('server_optimizer = { name = "momentum", lr = 1 }'),
         '28: [aggregation] server_optimizer.lr = 1: unknown key; did you mean "learning_rate"? '
         "allowed: name, learning_rate, momentum, nesterov"),
        (*_aggregated('server_optimizer = { name = "momentum", momentum = 1 }'),
         "28: [aggregation] server_optimizer.momentum = 1: at least 0 and below 1"),
        (*_aggregated('server_optimizer = { name = "momentum", learning_rate = 0 }'),
         "28: [aggregation] server_optimizer.learning_rate = 0: above 0"),
        (*_aggregated('server_optimizer = { name = "momentum", momentum = 0, nesterov = true }'),
         "28: [aggregation] server_optimizer.nesterov = true: only with momentum above 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_line(job: str, old: str, new: str, message: str) -> None:
    assert old in job
    assert faults(job.replace(old, new, 1)) == [f"job.toml:{message}"]


def test_a_wrong_condition_names_the_column(job: str) -> None:
    (message,) = faults(job.replace("memory_gib >= 2", "len(tags) > 2"))
    assert message.startswith("job.toml:28: [clients] where = ")
    assert "column 21: len(tags) is not allowed here; allowed are names" in message


def test_all_mistakes_at_once_in_the_order_of_lines(job: str) -> None:
    wrong = (
        job.replace("seed = 1", "seeds = 1")
        .replace("cohort = 4", "cohort = 2")
        .replace("batch_size = 32", "batch_size = 0")
        .replace('factory = "model:Net"\n', "")
    )
    lines = [message.split(": ")[0] for message in faults(wrong)]
    assert lines == ["job.toml:3", "job.toml:5", "job.toml:14", "job.toml:21"]


def test_an_empty_file_lists_what_is_needed() -> None:
    assert [message.split(";")[0] for message in faults("")] == [
        f"job.toml:1: {name}: missing" for name in ("name", "dataset", "model", "train", "rounds")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = \n", "job.toml:1: not valid TOML: Invalid value (column 5)"),
        ("a = 1\nb c = 2", "job.toml:2: not valid TOML: Expected '=' after a key"),
        ("a = 1\na = 2\n", "job.toml:2: not valid TOML: Cannot overwrite a value"),
        ("a = 1\nb = [", "job.toml:2: not valid TOML: "),
        ("a = " + "[" * 5000, "job.toml: nested too deep"),
    ],
)
def test_toml_errors_have_their_line(text: str, message: str) -> None:
    assert faults(text)[0].startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"job\.toml: No such file or directory: name a job"):
        read_job(tmp_path / "job.toml")
    (tmp_path / "job.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(JobFileError, match="not UTF-8"):
        read_job(tmp_path / "job.toml")


def test_values_from_elsewhere_are_checked_too(job: str) -> None:
    values = parse_job(job, "job.toml").to_dict()
    values["rounds"]["quorum"] = 5
    with pytest.raises(JobFileError, match=r"^\[rounds\] quorum = 5: at most the cohort \(4\)$"):
        JobSpec.from_dict(values)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def _paths(values: dict[str, object], under: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, value in values.items():
        found.append((*under, name))
        if isinstance(value, dict):
            found.extend(_paths(value, (*under, name)))
    return found


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=json_values)
def test_any_value_anywhere_is_taken_or_refused_in_words(
    data: st.DataObject, value: object
) -> None:
    values = parse_job(JOB, "job.toml").to_dict()
    path = data.draw(st.sampled_from(_paths(values)))
    table = values
    for step in path[:-1]:
        table = table[step]
    table[path[-1]] = value
    try:
        spec = JobSpec.from_dict(values)
    except JobFileError as error:
        assert str(error)
    else:
        assert JobSpec.from_dict(spec.to_dict()) == spec


def test_every_example_is_valid(pytestconfig: pytest.Config) -> None:
    files = sorted((pytestconfig.rootpath / "examples").glob("*/job.toml"))
    assert len(files) >= 3

    assert all(read_job(file).name for file in files)


@pytest.mark.parametrize("updates", ["all", "none", "last 1 round", "last 20 rounds"])
def test_what_is_kept_of_a_job(job: str, updates: str) -> None:
    spec = parse_job(f'{job}[retention]\nupdates = "{updates}"\n', "job.toml")
    assert spec.retention.updates == updates
    assert spec.to_dict()["retention"] == {"updates": updates}
    assert JobSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("updates", ['"some"', '"last 0 rounds"', '"last rounds"', '"2"', "2"])
def test_what_cannot_be_kept_of_a_job(job: str, updates: str) -> None:
    (fault,) = faults(f"{job}[retention]\nupdates = {updates}\n")
    assert f"[retention] updates = {updates}: " in fault
    assert '"all", "none" or "last N rounds", such as "last 5 rounds"' in fault


def test_a_job_that_says_nothing_of_its_updates(job: str) -> None:
    assert parse_job(job, "job.toml").to_dict()["retention"] == {}
