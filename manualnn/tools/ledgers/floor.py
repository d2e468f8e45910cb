"""The least that backward can do with: about one tensor for each matrix product.

Take all that torch.nn's backward reads, and ask from which tensors it could be recomputed without doing a
matrix product, convolution or attention a second time. Their outputs are enough: everything else is a pass or
two over memory. Sometimes less is: a pooled tensor in place of what was pooled, an activation's bits. The
floor is the fewest bytes that do, over all choices of tensors to save: a minimum cut of the graph of tensors
between the products' outputs and what backward reads.

Parameters, buffers and the model's inputs cost nothing. Of a ReLU only signs are read (a bit an element), of a
max-pooling which element it was (a byte a window); a random mask costs a bit and cannot be recomputed.
"""

import collections
import re

# Nodes of torch's graph, by the name without "Backward0".
PRODUCTS = re.compile(
    r"convolution|addmm|^mm$|bmm|addmv|^mv$|^dot$|linear|matmul|attention|rnn|lstm|gru|bilinear",
    re.IGNORECASE,
)
SIGNS = re.compile(r"^(relu|threshold|leakyrelu|hardtanh|hardsigmoid|rrelu|abs)", re.IGNORECASE)
POSITIONS = re.compile(r"max_?pool", re.IGNORECASE)
UNBOUNDED = 1 << 62


def floor(nodes, reads):
    """Bytes of the cheapest set of tensors to save.

    nodes: of torch's graph; reads: for each tensor that is saved, (node that reads it or None, name there,
    node that made it or None, its output number, bytes, elements, whether it is random, whether it is free).
    """
    graph = Cut()
    for node in nodes:
        product = is_product(node)
        for i, size in enumerate(sizes(node)):
            graph.cost((node, i), size)
            if product:
                graph.start((node, i))
            else:
                for source in inputs_of(node):
                    graph.edge(source, (node, i))
    for i, (node, read, maker, at, size, elements, random, free) in enumerate(reads):
        if free:
            continue
        name = "" if node is None else name_of(node)
        if SIGNS.match(name):
            needed = ("signs", node)
            graph.cost(needed, -(-elements // 8))
        elif POSITIONS.search(name):
            needed = ("positions", node)
            graph.cost(needed, sum(elements_of(node)))
        elif maker is not None:
            graph.end((maker, at))
            continue
        else:  # without a gradient: statistics, a mask
            needed = ("saved", i)
            graph.cost(needed, -(-elements // 8) if random else size)
            if random or node is None or is_product(node) or not is_output(read):
                graph.start(needed)
                graph.end(needed)
                continue
        for source in inputs_of(node):
            graph.edge(source, needed)
        graph.end(needed)
    return graph.least()


def name_of(node):
    return re.sub(r"Backward\d*$", "", node.name())


def is_product(node):
    return bool(PRODUCTS.search(name_of(node)))


def is_output(name):
    """Whether a saved tensor of this name is one that the op made."""
    return name.startswith(("result", "output", "logsumexp", "mean", "rstd", "save_", "indices"))


def inputs_of(node):
    """(node, output number) of the tensors that the op was given, parameters left out."""
    found = [(n, i) for n, i in node.next_functions if n is not None]
    return [(n, i) for n, i in found if not n.name().endswith("AccumulateGrad")]


def sizes(node):
    try:
        metadata = node._input_metadata
    except RuntimeError:
        return []
    return [product(m.shape) * m.dtype.itemsize for m in metadata]


def elements_of(node):
    return [product(m.shape) for m in node._input_metadata]


def product(shape):
    n = 1
    for size in shape:
        n *= int(size)
    return n


class Cut:
    """The cheapest set of vertices that separates the starts from the ends (Ford and Fulkerson 1956)."""

    def __init__(self):
        self._index, self._costs, self._pairs = {}, {}, set()
        self._starts, self._ends = set(), set()

    def cost(self, vertex, size):
        self._costs[self._number(vertex)] = size

    def edge(self, source, target):
        self._pairs.add((self._number(source), self._number(target)))

    def start(self, vertex):
        self._starts.add(self._number(vertex))

    def end(self, vertex):
        self._ends.add(self._number(vertex))

    def _number(self, vertex):
        return self._index.setdefault(vertex, len(self._index))

    def least(self):
        """A vertex is an edge of its cost, from 2 v to 2 v + 1; the edges between vertices are unbounded."""
        n = len(self._index)
        start, end = 2 * n, 2 * n + 1
        room = [collections.defaultdict(int) for _ in range(2 * n + 2)]
        for v in range(n):
            room[2 * v][2 * v + 1] = self._costs.get(v, UNBOUNDED)
        for v, w in self._pairs:
            room[2 * v + 1][2 * w] = UNBOUNDED
        for v in self._starts:
            room[start][2 * v] = UNBOUNDED
        for v in self._ends:
            room[2 * v + 1][end] = UNBOUNDED
        flow = 0
        while path := shortest(room, start, end):
            steps = list(zip(path, path[1:], strict=False))
            more = min(room[v][w] for v, w in steps)
            for v, w in steps:
                room[v][w] -= more
                room[w][v] += more
            flow += more
        return flow


def shortest(room, start, end):
    """A path along edges that have room, from start to end; or None."""
    before = {start: None}
    queue = collections.deque([start])
    while queue:
        v = queue.popleft()
        for w, left in room[v].items():
            if left > 0 and w not in before:
                before[w] = v
                if w == end:
                    path = [w]
                    while before[path[-1]] is not None:
                        path.append(before[path[-1]])
                    return path[::-1]
                queue.append(w)
    return None
