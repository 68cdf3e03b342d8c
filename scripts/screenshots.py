#!/usr/bin/env python3
"""Writes docs/demo.svg and docs/status.svg: the output of `demo` and `status` on a terminal, with its colours.

scripts/screenshots.py [PROGRAM]    (target/release/billing-daemon, or else target/debug/billing-daemon)
"""

import fcntl, html, os, pty, re, shutil, struct, subprocess, sys, tempfile, termios, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100
# The colours of a dark terminal, by their ANSI number.
COLOURS = ["#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9"]
PLAIN, DIM, BACK = "#d8dee9", "#8b95a5", "#1e222a"
WIDTH, HEIGHT, MARGIN = 8.43, 19, 16


def program():
    given = [Path(argument).resolve() for argument in sys.argv[1:2]]
    usual = [ROOT / "target" / profile / "billing-daemon" for profile in ("release", "debug")]
    found = [path for path in given + usual if path.exists()]
    return found[0] if found else sys.exit("build the program first: cargo build --release")


def terminal_output(argv, folder, environment):
    """Returns everything that argv writes to a terminal of COLUMNS columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    child = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    read = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        read += piece
    child.wait()
    return read.decode()


def screen(text):
    """Returns the visible lines, as lists of (character, colour, is bold). Progress bars overwrite themselves."""
    lines, row, column, colour, bold = [[]], 0, 0, PLAIN, False
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]", text):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append([])
        elif piece[0] != "\x1b":
            line = lines[row]
            line.extend([(" ", PLAIN, False)] * (column + 1 - len(line)))
            line[column] = (piece, colour, bold)
            column += 1
        elif piece[-1] == "m":
            for code in [int(code or 0) for code in piece[2:-1].split(";")]:
                if code == 0:
                    colour, bold = PLAIN, False
                elif code == 1:
                    bold = True
                elif code == 2:
                    colour = DIM
                elif 30 <= code <= 37:
                    colour = COLOURS[code - 30]
                elif 90 <= code <= 97:
                    colour = DIM if code == 90 else COLOURS[code - 90]
                elif code == 39:
                    colour = PLAIN
        elif piece[-1] == "K":
            del lines[row][0 if piece == "\x1b[2K" else column:]
        elif piece[-1] == "A":
            row = max(0, row - int(piece[2:-1] or 1))
    while lines and not any(character.strip() for character, _, _ in lines[-1]):
        lines.pop()
    return lines


def drawn(command, lines):
    prompt = [("$", DIM, False), (" ", PLAIN, False)] + [(character, PLAIN, True) for character in command]
    lines = [prompt, *lines]
    width = max(map(len, lines)) * WIDTH + 2 * MARGIN
    height = len(lines) * HEIGHT + 2 * MARGIN
    rows = []
    for number, line in enumerate(lines):
        spans, run, style = [], "", None
        for character, colour, bold in [*line, ("", None, None)]:
            if (colour, bold) != style and run:
                weight = ' font-weight="bold"' if style[1] else ""
                spans.append(f'<tspan fill="{style[0]}"{weight}>{html.escape(run)}</tspan>')
                run = ""
            run, style = run + character, (colour, bold)
        y = MARGIN + HEIGHT * number + 14
        rows.append(f'<text x="{MARGIN}" y="{y}" xml:space="preserve">{"".join(spans)}</text>')
    title = html.escape(f"Output of {command}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{BACK}"/>\n'
        f'<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="14">\n'
        + "\n".join(rows)
        + "\n</g>\n</svg>\n"
    )


def main():
    daemon = program()
    with tempfile.TemporaryDirectory() as folder:
        # Commands that the program prints begin with the name by which it was started.
        path = f"{daemon.parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "TERM": "xterm-256color", "HOME": folder, "DATABASE_URL": "sqlite://demo.db?mode=rwc"}
        os.environ["PATH"] = path
        demo = ["billing-daemon", "demo", "--database-url", environment["DATABASE_URL"]]
        keep("demo", terminal_output(demo, folder, environment))
        shutil.copy(ROOT / "jobs.toml", folder)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running = subprocess.Popen(["billing-daemon", "run"], cwd=folder, env=environment, **quiet)
        try:
            status = ["billing-daemon", "status"]
            # Until the daemon has written a heartbeat; at most ten seconds.
            for _ in range(20):
                time.sleep(0.5)
                printed = subprocess.run(status, cwd=folder, env=environment, capture_output=True, text=True)
                if "alive, last seen" in printed.stdout:
                    break
            keep("status", terminal_output(status, folder, environment))
        finally:
            running.terminate()
            running.wait()


def keep(name, text):
    (ROOT / "docs" / f"{name}.svg").write_text(drawn(f"billing-daemon {name}", screen(text)))
    print(f"docs/{name}.svg")


main()
