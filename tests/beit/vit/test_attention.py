from beit.vit.attention import relative_position_index


def test_the_index_has_the_released_codes_rows_on_its_grid_of_14():
    patches = relative_position_index(14, 14)[1:, 1:]
    assert [int(patches[pair]) for pair in ((0, 0), (0, 1), (1, 0), (0, 14))] == [364, 363, 365, 337]


def test_every_offset_between_patches_has_one_row_and_the_class_token_the_last_three():
    rows, columns = 3, 4
    index = relative_position_index(rows, columns)
    offsets: dict[int, set[tuple[int, int]]] = {}
    for asking in range(rows * columns):
        for other in range(rows * columns):
            offset = (asking // columns - other // columns, asking % columns - other % columns)
            offsets.setdefault(int(index[1 + asking, 1 + other]), set()).add(offset)
    assert sorted(offsets) == list(range(35))
    assert all(len(same) == 1 for same in offsets.values())
    assert set(index[0, 1:].tolist()) == {35}, "the class token asks a patch"
    assert set(index[1:, 0].tolist()) == {36}, "a patch asks the class token"
    assert int(index[0, 0]) == 37
