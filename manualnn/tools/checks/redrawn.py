"""Integers and bools of the same kind as those given: what is common to them all is kept.

An order stays one; numbers that rise go on rising, with the same ends; a mask that ends each row goes on ending
it; what is symmetric, or one of each row, stays so. What is triangular becomes a band beside the diagonal.
"""

import torch

FEW = 16  # integers of so small a range may be drawn from all of it


def redrawn(t, classes, largest, like, seed):
    """Another tensor of its kind, or None where nothing can be said of it.

    classes: of labels, how many there are; largest: the largest size of an input; like: whether it stands
    beside an input element by element, as a target does.
    """
    generator = torch.Generator().manual_seed(61 + seed)
    flat, rows = t.flatten().long(), t.long()
    if t.dim() > 1 and _is_triangular(rows):
        return _band(t)
    drawn = _Draw(flat, t.dtype is torch.bool, classes, largest, like, generator)
    if t.dim() == 1 or t.shape[-1] == 1:
        made = _line(flat, drawn, classes is not None)
    else:
        made = _table(rows, drawn)
    return None if made is None else made.view(t.shape).to(t.dtype)


def _band(t):
    """What is triangular, without what is far from the diagonal: a window that slides. None of a small one."""
    length, far = t.shape[-1], (t.shape[-1] + 1) // 2
    distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    return t.masked_fill(distance >= far, 0) if length > 2 else None


class _Draw:
    """Draws integers from those that occur, or from all of their range where that is small."""

    def __init__(self, flat, bools, classes, largest, like, generator):
        self.generator, self.binary = generator, bool(((flat == 0) | (flat == 1)).all())
        occurring = flat.unique()
        counted = occurring[occurring >= 0].tolist() or [-1]
        low, high = counted[0], counted[-1]
        if bools:
            low, high = 0, 1
        elif classes is not None:
            low, high = 0, classes - 1
        elif low == high and high > 1:  # lengths that are all the same
            low = 1
        elif like and high == 0:
            high = 1
        whole = high <= largest or high - low < FEW
        inside = torch.arange(low, high + 1) if whole and high > low else occurring
        # What is less than 0 stands for something else: padding, what is ignored.
        self.numbers = torch.cat((occurring[occurring < 0], inside)).unique()
        self.missing = self.numbers[~torch.isin(self.numbers, occurring)]

    def some(self, count):
        """Any, those that did not occur first."""
        at = torch.randint(0, len(self.numbers), (count,), generator=self.generator)
        made = self.numbers[at]
        first = self.missing[self.order(len(self.missing))][: max(1, count // 2)]
        made[: len(first)] = first
        return made[self.order(count)]

    def table(self, rows):
        """Any, and of 0 and 1 both in each row: one that is masked throughout is asked about apart."""
        made = self.some(rows.numel()).view(rows.shape)
        if self.binary:
            at = torch.randint(0, rows.shape[-1], (len(rows), 1), generator=self.generator)
            alone = made.min(-1, keepdim=True).values == made.max(-1, keepdim=True).values
            made = torch.where(alone & (torch.arange(rows.shape[-1]) == at), 1 - made, made)
        return made

    def apart(self, count):
        """No two the same, those that did not occur first."""
        first = self.missing[self.order(len(self.missing))]
        others = self.numbers[~torch.isin(self.numbers, self.missing)]
        rest = others[self.order(len(others))]
        return torch.cat((first, rest))[:count][self.order(count)]

    def order(self, count):
        return torch.randperm(count, generator=self.generator)


def _line(flat, drawn, labels):
    """Another row of integers: in order, apart, rising or falling as the one given."""
    count = len(flat)
    if _is_one_number(flat) and not labels:
        made = drawn.some(count).sort(descending=bool(flat[0] > drawn.numbers[0])).values
        made[0] = flat[0]  # the longest, as lengths are often given
        return made
    apart = flat.unique().numel() == count
    if not labels and is_sorted(flat):
        inner = drawn.apart(count) if apart else drawn.some(count)
        inner = inner.sort(descending=bool(flat[0] > flat[-1])).values
        inner[0], inner[-1] = flat[0], flat[-1]
        return None if apart and inner.unique().numel() < count else inner
    if not labels and flat.sort().values.equal(torch.arange(count)):
        return flat.new_empty(count).index_copy_(0, flat, flat.roll(1))  # one round: no swap
    if apart and len(drawn.numbers) >= count:
        return drawn.apart(count)
    return drawn.table(flat[None])[0]


def _table(t, drawn):
    """Another table of integers; its rows are those of the last dimension."""
    rows = t.reshape(-1, t.shape[-1])
    count, length = rows.shape
    if drawn.binary and is_sorted(rows):
        return _ended(rows, drawn)
    if _is_symmetric(t) and not _is_one_number(t):  # neighbours in a graph: called otherwise
        order = drawn.order(length)
        return t.index_select(-1, order).index_select(-2, order)
    of_rows = [row[drawn.order(length)] for row in rows]
    if _is_shared_out(rows):
        return torch.stack(of_rows).view(t.shape)
    if _apart(rows):
        if not _apart(rows.mT) and len(drawn.numbers) >= length:
            of_rows = [drawn.apart(length) for _ in rows]
            if bool((rows.diff(dim=-1) > 0).all()):
                of_rows = [row.sort().values for row in of_rows]
            return torch.stack(of_rows).view(t.shape)
        if rows.unique().numel() == rows.numel():
            return rows.flatten()[drawn.order(rows.numel())].view(t.shape)
        return rows[drawn.order(count)].view(t.shape)
    if _apart(rows.mT):
        return rows[drawn.order(count)].view(t.shape)
    made = drawn.table(rows)
    if is_sorted(rows) and not drawn.binary:
        made = made.sort(-1).values
    return made.view(t.shape)


def may_be_empty(t):
    """Whether a row of a mask may be masked throughout, as far as the given ones show."""
    rows = t.long()
    known = _is_shared_out(rows) or _is_triangular(rows) or _is_symmetric(rows)
    return t.shape[-1] > 1 and (_is_one_number(rows) or not known)


def _is_shared_out(rows):
    """Whether each row has the same sum: one of each row, or an order."""
    return rows.sum(-1).unique().numel() == 1 and not _is_one_number(rows)


def is_sorted(t):
    """Whether the numbers of each row rise, or do not fall; or the other way round."""
    steps = t.long().diff(dim=-1)
    return t.shape[-1] > 1 and (bool((steps >= 0).all()) or bool((steps <= 0).all()))


def _ended(rows, drawn):
    """Rows of 0 and 1 that change at other places, from the same to the other."""
    count, length = rows.shape
    at = torch.randint(1, length, (count, 1), generator=drawn.generator)
    made = (torch.arange(length) < at).long()
    steps = rows[:, -1] - rows[:, 0]
    rises = steps.sum() > 0 or (not steps.any() and rows[0, 0] == 0)
    return 1 - made if rises else made


def _is_symmetric(t):
    return t.dim() > 1 and t.shape[-1] == t.shape[-2] and t.equal(t.mT)


def _is_triangular(t):
    """Whether it is one half of a square, as a causal mask is."""
    if t.shape[-1] != t.shape[-2] or t.shape[-1] < 2:
        return False
    first = t.reshape(-1, *t.shape[-2:])[0]
    lower, upper = first.tril(-1), first.triu(1)
    below, above = (h[h != 0].numel() for h in (lower, upper))
    full = t.shape[-1] * (t.shape[-1] - 1) // 2
    return {below, above} == {0, full}


def _is_one_number(t):
    return t.unique().numel() == 1


def _apart(rows):
    """Whether no row has a number twice, and rows are longer than one."""
    if rows.shape[-1] < 2:
        return False
    return bool((rows.sort(-1).values.diff(dim=-1) != 0).all())


def repeated_in_rows(t):
    """(a table with integers that come twice in each row, whether they may be promised not to), or None.

    Where no integer of the table comes twice another line asks.
    """
    if t.dtype is torch.bool or t.dim() < 2 or t.shape[-1] < 2 or not t.numel():
        return None
    rows = t.reshape(-1, t.shape[-1])
    if not _apart(rows) or rows.unique().numel() == rows.numel():
        return None
    made = rows.clone()
    made[:, 1] = made[:, 0]
    rising = bool((rows.diff(dim=-1) > 0).all())
    order = bool((rows.sort(-1).values == torch.arange(t.shape[-1])).all())
    return made.view(t.shape), rising or order
