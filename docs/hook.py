"""The hook of mkdocs: puts into the pages what they take from the code.

A page writes ``{{ name arguments }}``, alone on a line or inside one; the names are DIRECTIVES below.
A name, a definition, a section or an op that is not there ends the build with an error.
"""

import re
import shlex

from mkdocs.exceptions import PluginError
from rendering import formulas, kernels, ops, project, results, source

DIRECTIVE = re.compile(r"\{\{ (\w+)((?: [^{}]+)?) \}\}")


def code(place, title=None):
    return source.fenced(source.excerpt(place), title or place.partition(":")[0])


def mathematics(place):
    return source.fenced(source.mathematics(place), place.partition(":")[0])


def line(place, words):
    return f"`{source.line(place, words)}`"


def row(path, words):
    return source.fenced(source.line(path, words), path)


def check_lines():
    return "\n".join(f"- {name}" for name in project.check_lines())


def doc(place, *numbers):
    """Lines of a docstring, counted from 1, as formulas."""
    lines = source.docstring(place).splitlines()
    return formulas.formula("\n".join(lines[int(n) - 1] for n in numbers))


DIRECTIVES = {
    "batteries": project.batteries,
    "chain": kernels.chain,
    "check_lines": check_lines,
    "code": code,
    "configurations": project.configurations,
    "converted": ops.converted,
    "doc": doc,
    "functions": lambda: ops.functions(pages),
    "kernel": kernels.kernel,
    "line": line,
    "mathematics": mathematics,
    "memory_picture": results.picture,
    "memory_table": results.models,
    "ops": ops.sections,
    "ops_table": lambda page: ops.table(pages, page),
    "results": results.every,
    "root": project.root,
    "row": row,
}
pages = {}  # module with ops -> its page


def on_files(files, config):
    """Which page shows the ops of which module, for the table of all."""
    ops.shown.clear()
    pages.clear()
    for file in files.documentation_pages():
        for name, arguments in DIRECTIVE.findall(file.content_string):
            if name == "ops":
                pages.update(dict.fromkeys(arguments.split(), file.src_uri.rpartition("/")[2]))


def on_page_markdown(markdown, page, config, files):
    def put(match):
        name, arguments = match[1], shlex.split(match[2])
        where = f"{page.file.src_uri}: {match[0]}"
        if name not in DIRECTIVES:
            raise PluginError(
                f"{where}: no directive has that name; known: {', '.join(DIRECTIVES)}"
            )
        try:
            text = DIRECTIVES[name](*arguments)
        except (LookupError, OSError, TypeError, ValueError) as error:
            raise PluginError(f"{where}: {error}") from error
        return DIRECTIVE.sub(put, text) if name == "root" else text

    return DIRECTIVE.sub(put, formulas.fences(markdown))


def on_env(env, config, files):
    if ops.missing():
        raise PluginError(f"no page shows the ops of {', '.join(ops.missing())}")
