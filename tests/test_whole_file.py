import pytest

from mmdet_diffusion.whole_file import write_whole_file


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    for content in (b'one', b'another'):
        write_whole_file(tmp_path / 'a', content)
        assert (tmp_path / 'a').read_bytes() == content
        assert [file.name for file in tmp_path.iterdir()] == ['a']


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(OSError):
        write_whole_file(tmp_path / 'folder', b'a file in place of a folder')
    assert [file.name for file in tmp_path.iterdir()] == ['folder']
