"""Installing a release, inference with it, and exporting the personalised model."""

from umbel import tensors
from umbel.atomic import write_atomically
from umbel.errors import UmbelError
from umbel.messages import Answered, Export, Exported, Infer, Install
from umbel.placement import place
from umbel.plan import PLACED
from umbel_edge.commands.handlers.context import HandlerContext


def install(context: HandlerContext, command: str, body: Install) -> None:
    """Fetch a release's file, verify it, and use it from now on."""
    model = context.downloads.fetch(body.model, context.download_folder)
    context.models.install(body, model, context.keys.known)


def infer(context: HandlerContext, command: str, body: Infer) -> Answered:
    """Run the installed model, and upload its outputs; raises TensorError when an input or an output is not finite.

    Some of LiteRT's kernels, such as REDUCE_MAX, lose a NaN, and would answer finite numbers where Keras answers NaN.
    """
    inputs = tensors.load(context.downloads.fetch(body.inputs, context.download_folder))
    tensors.check_finite(inputs, "the inputs")
    installed, outputs = context.models.infer(inputs)
    tensors.check_finite(outputs, f"the outputs of release {installed.release}")
    return Answered(installed.release, context.uploads.send(command, tensors.dump(outputs)))


def export(context: HandlerContext, command: str, body: Export) -> Exported:
    """Write this device's own weights into the plan's TFLite file, keep it, and upload it."""
    plan = context.plans.open(body.plan)
    personal = context.personal_weights(plan)
    if not personal.is_file():
        raise UmbelError("this device has not trained the plan yet, so it has no personalised weights to export")
    weights = tensors.load(personal.read_bytes())
    tensors.check(weights, plan.manifest.weights, "the personalised weights")
    name = PLACED[body.variant]
    model = place(plan.read(name), weights, plan.manifest.weight_maps[name])
    file = f"{plan.manifest.task}.{body.variant}.tflite"
    write_atomically(context.state.folder / "exports" / file, model)
    return Exported(context.uploads.send(command, model), context.state.rounds, body.variant)
