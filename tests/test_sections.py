"""A section of another class in place of a configuration's own."""

import dataclasses

from seqssgd.sections import with_section


def test_another_section_has_its_own_defaults_or_keeps_the_values_that_there_were():
    @dataclasses.dataclass
    class Section:
        width: int = 1

    @dataclasses.dataclass
    class Wider(Section):
        width: int = 2
        height: int = 3

    @dataclasses.dataclass
    class Whole:
        section: Section = dataclasses.field(default_factory=lambda: Section(width=9))

    assert with_section(Whole, "section", Wider)().section == Wider(2, 3)
    kept = with_section(Whole, "section", Wider, keep=True)
    assert kept().section == Wider(9, 3) and kept is with_section(Whole, "section", Wider, keep=True)
