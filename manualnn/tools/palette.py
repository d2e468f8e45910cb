"""The colours of all pictures: told apart by those who see few colours, too (Okabe and Ito 2008)."""

BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
SERIES = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK, "#999999")  # of curves, in this order
# Of letters, for which the colours above are too pale; and greys.
BROWN, DARK_GREEN = "#9C6B00", "#007A59"
INK, DARK, SLATE, GREY, LIGHT = "#222222", "#444444", "#777777", "#BBBBBB", "#DDDDDD"
