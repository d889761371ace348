"""`accelerate launch` for FSDP on CPUs: the launcher's own parser and environment, but gloo and no GPU.

Accelerate offers FSDP only to processes with accelerators, though FSDP runs on any device: in the processes, CPUs are added
to that list.
"""

import inspect
import os
import runpy
import sys
import textwrap


def launch(words: list[str]) -> None:
    from accelerate.commands import launch as theirs
    from accelerate.utils import launch as environments

    given = theirs.launch_command_parser().parse_args(words)
    given, _, _ = theirs._validate_launch_command(given)
    variables = {key: str(value) for key, value in environments.prepare_multi_gpu_env(given).items()}
    command = ["python", "-m", "torch.distributed.run", "--nproc-per-node", str(given.num_processes)]
    command += ["--master-port", os.environ["AUTODIST_PORT"], __file__, "--rank", given.training_script]
    command += given.training_script_args
    os.execvpe("python", command, {**os.environ, **variables, "ACCELERATE_USE_CPU": "true"})


def rank(words: list[str]) -> None:
    import accelerate.state as state
    from accelerate import Accelerator

    text = textwrap.dedent(inspect.getsource(state.AcceleratorState.__init__))
    listed = "DistributedType.MULTI_GPU,"
    assert text.count(listed) == 1
    # Only the list is another.
    exec(text.replace(listed, f"{listed} DistributedType.MULTI_CPU,"), vars(state))
    state.AcceleratorState.__init__ = vars(state).pop("__init__")
    # The file asks for the GPUs that are not here.
    del Accelerator
    sys.argv = words
    sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
    if words[-1].endswith("training_args.json"):
        import transformers.training_args as arguments

        given = arguments.TrainingArguments.__post_init__

        def on_cpu(self: arguments.TrainingArguments) -> None:
            self.use_cpu = True
            given(self)

        arguments.TrainingArguments.__post_init__ = on_cpu  # type: ignore[method-assign]
    runpy.run_path(words[0], run_name="__main__")


if sys.argv[1] == "--rank":
    rank(sys.argv[2:])
else:
    assert sys.argv[1] == "launch"
    launch(sys.argv[2:])
