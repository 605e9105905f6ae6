"""The shape of the house, checked by parsing every file: who imports whom, sizes, what is never written."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("models", "nodes", "media", "training", "research", "runner", "tests", "tools")

CORE_LIBRARIES = {"torch", "numpy", "safetensors", "kornia"} | set(sys.stdlib_module_names)
EXCEPTIONS = {
    # Encoders are what this one file is about: it imitates the damage of JPEG and H.264.
    "models/pixels/compression.py": {"av", "PIL"},
    "models/pixels/chart.py": {"PIL"},
    # RAFT and the colours of flow are torchvision's, which every host has.
    "models/motion/raft.py": {"torchvision"},
    "models/motion/flow.py": {"torchvision"},
}
DOWNWARDS = {  # nothing imports research: runner/bench.py and runner/train.py load what they are asked for by name
    "models": {"models"},
    "media": {"media"},
    "nodes": {"nodes", "models", "media"},
    "training": {"training", "models"},
    "runner": {"runner", "media"},
    "research": {"research", "training", "runner", "models", "media"},
}
SYSTEMS = {"unimmvsr", "upscale_a_video", "mgld_vsr"}  # side by side: none knows another
PUBLISHED = SYSTEMS - {"unimmvsr"}  # UniMMVSR's references and sampling serve every system
NODES = (
    *("Load Video Restorer", "Cascade Input", "VSR Conditioning", "Reference Set", "Temporal Decode", "Spatial Tiles"),
    *("Temporal Windows", "Load Flow Model", "Estimate Motion", "Restorer Sampler", "Refine Sigmas", "Seeded Noise"),
    *("Reference Tokens", "Load VSR Adapter", "Motion Guidance", "Latent Propagation", "SDEdit Degradation"),
)
NAMED = re.compile(r"_*(upscale_?a_?video|mgld)\w*", re.IGNORECASE)  # as names in code
NETWORKS = {"vae.py", "unet.py", "dit.py", "decoder.py"}
UNPICKLERS = {"pickle.load", "pickle.loads", "pickle.Unpickler"}


def sources():
    """Read every Python file of the pack: {path from the root: text}."""
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def folder_of(name):
    return name.split("/")[0]


def imports(name, tree):
    """Give the (line, top-level library) pairs and the (line, parts of a module of the pack) pairs."""
    libraries, modules = [], []
    here = Path(name).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            libraries += [(node.lineno, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            libraries.append((node.lineno, node.module.split(".")[0]))
        elif isinstance(node, ast.ImportFrom):
            above = node.level - 1
            base = here[: len(here) - above] if above <= len(here) else ("..",)
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                modules.append((node.lineno, (*base, alias.name) if is_module((*base, alias.name)) else base))
    return libraries, modules


def is_module(parts):
    place = ROOT.joinpath(*parts)
    return place.is_dir() or place.with_suffix(".py").is_file()


def calls(tree, names):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in names]


def core_knows_neither_host_nor_other_libraries(name, tree):
    if folder_of(name) == "models":
        allowed = CORE_LIBRARIES | EXCEPTIONS.get(name, set())
        yield from ((line, library) for line, library in imports(name, tree)[0] if library not in allowed)


def imports_point_down_and_stay_relative(name, tree):
    if allowed := DOWNWARDS.get(folder_of(name)):
        libraries, modules = imports(name, tree)
        # The host has top-level modules called `nodes` and `models` of its own.
        yield from ((line, library) for line, library in libraries if library in {*FOLDERS, "cascadevsr"})
        yield from ((line, ".".join(parts)) for line, parts in modules if {*parts[:1]} - allowed)


def systems_stand_side_by_side_on_the_ground_floor(name, tree):
    if folder_of(name) == "models":
        own = SYSTEMS & set(Path(name).parts)
        used = imports(name, tree)[1]
        yield from ((line, ".".join(parts)) for line, parts in used if SYSTEMS & set(parts) - own)


def systems_are_told_apart_in_their_files_only(name, tree):
    """What differs between systems is in their descriptors (nodes/systems/base.py), not in branches elsewhere."""
    if folder_of(name) not in ("nodes", "models", "training") or "systems" in Path(name).parts:
        return
    for node in ast.walk(tree):  # no node asks a patcher or model for what a System says
        if (
            folder_of(name) == "nodes"
            and isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("getattr", "hasattr")
        ):
            asked = node.args[1]
            if isinstance(asked, ast.Constant) and str(asked.value).startswith("vsr_"):
                yield node.lineno, ast.unparse(node)
    if PUBLISHED & set(Path(name).parts):
        return
    for line, parts in imports(name, tree)[1]:
        if PUBLISHED & set(parts) or parts[:2] == ("nodes", "systems") and SYSTEMS & set(parts):
            yield line, ".".join(parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in PUBLISHED:
            yield node.lineno, f"the key {node.value!r}"
        for field in ("id", "attr", "name", "asname", "arg"):
            if NAMED.fullmatch(str(getattr(node, field, None))):
                yield node.lineno, getattr(node, field)


def core_messages_name_no_node(name, tree):
    """The core knows no nodes: who calls it names the node in its errors (nodes/host/services.py, titled)."""
    if folder_of(name) == "models" and name != "models/layout/plan.py":  # the plan's remedies are what VSR Plan shows
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                yield from ((node.lineno, title) for title in NODES if title in node.value)


def nothing_executes_pickled_code(name, tree):
    for call in calls(tree, {"torch.load"}):
        safe = [key.value for key in call.keywords if key.arg == "weights_only"]
        if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
            yield call.lineno, "torch.load without weights_only=True"
    yield from ((call.lineno, ast.unparse(call.func)) for call in calls(tree, UNPICKLERS))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "pickle"):
            names = {f"{node.module}.{alias.name}" for alias in node.names} & (UNPICKLERS | {"torch.load"})
            yield from ((node.lineno, f"{each} under another name") for each in names)


def no_bare_except(name, tree):
    handlers = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    yield from ((node.lineno, "except:") for node in handlers if node.type is None)


def no_print_in_the_pack(name, tree):
    if folder_of(name) in ("models", "nodes"):
        yield from ((call.lineno, "print") for call in calls(tree, {"print"}))


RULES = [
    core_knows_neither_host_nor_other_libraries,
    imports_point_down_and_stay_relative,
    systems_stand_side_by_side_on_the_ground_floor,
    nothing_executes_pickled_code,
    no_bare_except,
    no_print_in_the_pack,
    systems_are_told_apart_in_their_files_only,
    core_messages_name_no_node,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    trees = {name: ast.parse(text, name) for name, text in sources().items()}
    assert len(trees) > 20 and {folder_of(name) for name in trees} >= {"models", "nodes", "tests"}
    broken = [f"{name}:{line} {what}" for name, tree in trees.items() for line, what in rule(name, tree)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (RULES[0], "models/a.py", "def f():\n    import comfy.utils"),
        (RULES[0], "models/pixels/color.py", "import av"),
        (RULES[1], "models/layout/a.py", "from ...nodes import host"),
        (RULES[1], "models/a.py", "from ...elsewhere import thing"),
        (RULES[1], "training/a.py", "from .. import nodes"),
        (RULES[1], "nodes/a.py", "from models.layout import pieces"),
        (RULES[1], "nodes/a.py", "from ..research import graphs"),
        (RULES[1], "training/a.py", "from ..research.ablations import run"),
        (RULES[1], "runner/a.py", "from ..research import graphs"),
        (RULES[1], "runner/a.py", "from ..models import checkpoints"),
        (RULES[1], "research/a.py", "from ..tests.host import base_models"),
        (RULES[2], "models/mgld_vsr/unet.py", "from ..unimmvsr import rope"),
        (RULES[2], "models/layout/a.py", "from ..unimmvsr.vae import VAEConfig"),
        (RULES[3], "training/a.py", "torch.load(path, weights_only=False)"),
        (RULES[3], "training/a.py", "torch.load(path)"),
        (RULES[3], "nodes/a.py", "from torch import load"),
        (RULES[3], "nodes/a.py", "pickle.loads(data)"),
        (RULES[4], "run.py", "try:\n    pass\nexcept:\n    pass"),
        (RULES[5], "nodes/a.py", "print('x')"),
        (RULES[6], "nodes/a.py", "if system.key == 'mgld_vsr': pass"),
        (RULES[6], "nodes/host/a.py", "isinstance(model, UpscaleAVideoModel)"),
        (RULES[6], "nodes/a.py", "from .systems.unimmvsr import SYSTEM"),
        (RULES[6], "nodes/a.py", "from ..models.mgld_vsr import published"),
        (RULES[6], "models/motion/a.py", "def steps(mgld=False): pass"),
        (RULES[6], "training/a.py", "import_module('..models').upscale_a_video"),
        (RULES[6], "nodes/a.py", "getattr(model, 'vsr_tiles', None)"),
        (RULES[7], "models/a.py", "raise ValueError(f'{n} references. Unlink Reference Set.')"),
    ],
)
def test_rule_catches(rule, name, text):
    assert list(rule(name, ast.parse(text)))


def test_there_is_no_circle():
    graph = {}
    for name, text in sources().items():
        if folder_of(name) in DOWNWARDS:
            here = Path(name).with_suffix("").parts
            graph[here] = {parts for _, parts in imports(name, ast.parse(text))[1]} - {here}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


TYPED = {"nodes": 0.9, "models": 0.95}  # least share of parameters with a type


def parameters(tree):
    """Give the parameters of all functions; self, cls, *args and **kwargs are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield from ((node.name, each) for each in named if each.arg not in ("self", "cls"))


@pytest.mark.parametrize("folder", TYPED)
def test_helpers_are_typed(folder):
    texts = {name: text for name, text in sources().items() if folder_of(name) == folder}
    found = [(name, *each) for name, text in texts.items() for each in parameters(ast.parse(text))]
    bare = [f"{name}:{each.lineno} {where}({each.arg})" for name, where, each in found if each.annotation is None]
    share = 1 - len(bare) / len(found)
    assert share >= TYPED[folder], f"{share:.1%} of {len(found)} parameters are typed\n" + "\n".join(bare[:10])


def test_untyped_parameters_are_found():
    tree = ast.parse("def f(self, a, b: int, *args, c=1, **options):\n    def g(cls, d: str = ''): pass")
    assert [(where, each.arg) for where, each in parameters(tree) if each.annotation is None] == [
        ("f", "a"),
        ("f", "c"),
    ]


def test_files_stay_readable():
    long = []
    for name, text in sources().items():
        network = folder_of(name) == "models" and Path(name).name in NETWORKS
        limit = 600 if network or folder_of(name) == "tests" else 400
        if (lines := len(text.splitlines())) > limit:
            long.append(f"{name} has {lines} lines; at most {limit}: split it by concept")
    assert not long, "\n".join(long)
