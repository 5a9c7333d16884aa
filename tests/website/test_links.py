"""The check of a built site."""

from website.links import checked, main


def site(folder, **pages):
    for name, body in pages.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "index.html").write_text(f"<html><body>{body}</body></html>")
    (folder / "index.html").write_text(
        '<a href="one/">one</a><a href="one/#here">there</a><a href="https://example.org/">away</a>'
    )
    return folder


def test_a_whole_site_is_counted(tmp_path, capsys):
    report = checked(
        site(tmp_path, one='<h2 id="here">1</h2><a href="../">up</a><img src="data:image/png;base64,AA=="/>')
    )
    assert (report.pages, report.links, report.elsewhere, report.loaded, report.broken) == (2, 3, 1, 1, [])
    assert main(str(tmp_path)) == 0 and "2 pages, 3 links" in capsys.readouterr().out


def test_what_leads_nowhere_is_reported(tmp_path, capsys):
    wrong = '<h2>1</h2><a href="../two/">2</a><img src="gone.png"><script src="https://example.org/x.js"></script>'
    report = checked(site(tmp_path, one=wrong))
    assert report.broken == [
        "/index.html: one/#here names a place that is not there",
        "/one/index.html: ../two/ does not exist",
        "/one/index.html: gone.png does not exist",
        "/one/index.html: loads https://example.org/x.js from another host",
    ]
    assert main(str(tmp_path)) == 1 and "4 broken" in capsys.readouterr().out


def test_a_folder_without_a_site_is_refused(tmp_path, capsys):
    assert main(str(tmp_path)) == 2 and capsys.readouterr().err.count("\n") == 1
