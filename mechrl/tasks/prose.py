"""Generated prose: the ordinary text of the embedded model, its control text and a part of its training."""

from numpy.random import RandomState

from mechrl.tasks.ioi import NAMES, OBJECTS, PLACES

# Word lists of one kind each. Everything that follows a space in a sentence is one token of `mini`.
ANIMALS = tuple(
    "dog cat horse bird fox bear wolf rabbit goat sheep cow duck mouse snake lion tiger monkey frog owl turtle "
    "chicken pig donkey eagle spider whale shark deer crow bee".split()
)
THINGS = OBJECTS + tuple(
    "box table chair door window lamp stone stick coat boat wagon bridge wall fence tower clock mirror basket blanket "
    "candle bucket hammer ladder map key knife spoon plate cup bottle bag rope wheel brush drum flag coin shell crown "
    "kite pillow bench statue painting kettle carpet umbrella whistle violin camera lantern pencil button scarf "
    "glove".split()
)
FOODS = tuple(
    "bread cheese soup cake apple pear cherry honey butter rice pie salad egg onion potato carrot lemon peach plum "
    "melon bean corn pepper sugar salt milk tea coffee juice water".split()
)
GROUNDS = PLACES + tuple(
    "river forest hill valley village city castle farm barn kitchen cellar attic road field lake island desert cave "
    "harbor church museum theater bakery mill temple palace camp port square street".split()
)
QUALITIES = tuple(
    "old new small big red blue green white black yellow quiet loud bright dark heavy light strange plain clean dirty "
    "broken golden silver wooden soft hard warm cold sweet bitter round flat narrow wide deep tall short empty full "
    "ancient famous gentle proud brave lazy clever angry happy sad tired hungry lonely careful".split()
)
COLLEAGUES = tuple(
    "farmer baker teacher doctor sailor soldier painter singer writer hunter miller king queen prince captain child "
    "judge guard priest merchant nurse dancer driver cook pilot poet thief neighbor stranger friend".split()
)
FOUND = tuple(
    "found saw lost bought sold carried dropped hid wanted painted cleaned repaired kept moved borrowed".split()
)
WALKED = tuple("walked ran drove returned hurried climbed sailed traveled rode wandered marched crept".split())
FELT = tuple("smiled laughed cried waited slept listened sang danced shouted whispered nodded sighed".split())
TIMES = tuple("morning evening night winter summer spring autumn week month year".split())
WEATHER = tuple("rain snow wind fog sun storm cloud moon".split())
MANNERS = tuple("slowly quickly quietly suddenly finally often always never soon later again alone together".split())


def prose(rng: RandomState, sentences: int) -> str:
    """A short story of so many sentences about one person, one companion and one thing, which come back in it."""

    def some(words: tuple[str, ...]) -> str:
        return words[rng.randint(len(words))]

    hero, other = some(NAMES), f"the {some(COLLEAGUES)}"
    thing, quality, place, animal = some(THINGS), some(QUALITIES), some(GROUNDS), some(ANIMALS)
    forms = (
        lambda: f"{hero} {some(FOUND)} a {quality} {thing} near the {place}.",
        lambda: f"The {thing} was {quality} and {some(QUALITIES)}.",
        lambda: f"One {some(TIMES)} {other} {some(WALKED)} to the {place} with a {some(QUALITIES)} {animal}.",
        lambda: f"The {animal} {some(FELT)} {some(MANNERS)} and {some(WALKED)} over the {some(GROUNDS)}.",
        lambda: f"{hero} {some(FELT)}, but {other} {some(FELT)} {some(MANNERS)}.",
        lambda: f"There was {some(FOODS)} and {some(FOODS)} on the {some(THINGS)} in the {place}.",
        lambda: f'"Where is the {thing}?" said {hero}.',
        lambda: f"In the {some(TIMES)} the {some(WEATHER)} came from the {some(GROUNDS)}.",
        lambda: f"{hero} and {other} {some(FOUND)} the {thing} in the {some(GROUNDS)}.",
        lambda: f"It was a {some(QUALITIES)} {some(TIMES)}, so {other} ate {some(FOODS)} with the {animal}.",
        lambda: f"They {some(WALKED)} {some(MANNERS)} from the {place} to the {some(GROUNDS)}.",
    )
    return " ".join(forms[rng.randint(len(forms))]() for _ in range(sentences))
