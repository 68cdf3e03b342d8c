"""The flows of scripts/browser.sh, against `demo --serve`."""

import argparse
import concurrent.futures
import http.server
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.request

from playwright.sync_api import sync_playwright

THEMES = ["light", "dark"]
WIDTHS = [375, 1280]
SCRIPTS = [True, False]


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


class Session:
    """A person in one variant of the browser."""

    def __init__(self, browser, site, variant, screenshots, state):
        self.site, self.screenshots = site, screenshots
        theme, width, self.script = variant
        self.variant = f"{theme}-{width}-{'js' if self.script else 'nojs'}"
        self.errors, self.checked = [], []
        options = {"color_scheme": theme, "viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}
        self.context = browser.new_context(java_script_enabled=self.script, storage_state=state, **options)
        self.page = self.open_page(self.context)
        # axe needs JavaScript. A page without it is shown again, without its script, by a context that has it.
        self.inspector = self.page if self.script else self.open_page(browser.new_context(**options))

    def open_page(self, context):
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("console", lambda message: self.note(message.type, message.text))
        page.on("pageerror", lambda error: self.note("error", str(error)))
        return page

    def note(self, kind, text):
        # The status of an answer that a flow expects is not an error of the page.
        if kind == "error" and not text.startswith("Failed to load resource"):
            self.errors.append(text)

    def close(self):
        self.context.close()
        if not self.script:
            self.inspector.context.close()

    def open(self, path):
        self.page.goto(f"{self.site.url}/console/{path}")

    def sign_in(self):
        self.open("sign-in")
        self.page.fill("#token", self.site.token)
        self.page.click("main button")
        expect("Overview" in self.text(), "the person is signed in")

    def check(self, name):
        """Checks the page that is shown for accessibility and for its width, and keeps a picture of it."""
        page = self.inspector
        if not self.script:
            html = re.sub(r"<script[^>]*></script>", "", self.page.content())
            answer = lambda route: (
                route.fulfill(body=html, content_type="text/html")
                if route.request.resource_type == "document"
                else route.continue_()
            )
            page.route("**/*", answer)
            page.goto(self.page.url)
            page.unroute("**/*")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        expect(wide <= 0, f"{name} is {wide} pixels too wide")
        page.evaluate(self.site.axe)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        for violation in found["violations"]:
            nodes = [node["html"][:120] for node in violation["nodes"][:3]]
            self.site.violations.append(f"{self.variant} {name}: {violation['id']}: {nodes}")
        if self.site.picture and (name, self.variant) == ("overview", "light-1280-js"):
            page.screenshot(path=self.site.picture)
        if self.screenshots:
            page.screenshot(path=self.screenshots / f"{name}-{self.variant}.png", full_page=True)

    def text(self):
        return self.page.inner_text("main")

    def send(self, label, **fields):
        """Opens the form of an action, fills it and sends it."""
        form = self.page.locator("details.action", has=self.page.get_by_text(label, exact=True)).first
        if form.get_attribute("open") is None:
            form.locator("summary").click()
        for name, value in fields.items():
            field = form.locator(f"[name={name}]")
            field.select_option(value) if name == "mode" else field.fill(value)
        form.locator("button").click()


def sign_in(session):
    session.context.clear_cookies()
    session.open("")
    expect("Sign in" in session.text(), "a page without a person shows the form")
    session.check("sign-in")
    session.page.fill("#token", "wrong")
    session.page.click("main button")
    expect("the token is wrong" in session.text(), "a wrong token is refused")
    session.sign_in()


def overview(session):
    session.open("")
    session.check("overview")
    text = session.text().lower()
    for part in ["last success", "next run", "panel guard", "arrears", "held instances", "dead letters"]:
        expect(part in text, f"the overview shows {part}")
    session.open("daemons")
    session.check("daemons")
    expect(re.search("alive|failing", session.text()), "the daemon is alive")


def job(session):
    session.open("jobs")
    session.check("jobs")
    expect(session.page.locator("svg.bars").count() >= 4, "each job has its bars")
    session.page.click("main a:text-is('billing')")
    session.check("job")
    expect(session.page.locator("section svg.bars g").count() == 60, "60 runs have bars")
    text = session.text()
    expect("paused" in text and "retrying" in text, "the history has each kind of run")
    expect(session.page.locator("svg.timeline").is_visible(), "the timeline is shown")


def run(session):
    session.open("jobs/billing/timeline?runs=60")
    session.check("timeline")
    session.page.locator("main td a").nth(3).click()
    session.check("run")
    expect("fencing token" in session.text().lower(), "a run shows its token")


def schedule(session):
    session.open("schedule")
    expect("audit" in session.text(), "the next runs are listed")
    session.page.fill("[name=text]", "30 2 * * *")
    session.page.fill("[name=zone]", "Europe/Berlin")
    session.page.fill("[name=from]", "2027-03-26T00:00:00Z")
    session.page.click(".filter button")
    session.check("schedule")
    expect("first instant after the clock is changed" in session.text(), "a skipped local time is marked")
    session.page.fill("[name=text]", "30 2 * *")
    session.page.click(".filter button")
    expect("fields" in session.text(), "an invalid expression is explained")


def billing(session):
    session.open("billing")
    session.check("billing")
    expect("USD" in session.text(), "the runs have amounts")
    expect("recorded another sum" not in session.text(), "the sums agree with those of the batches")
    expect(session.page.locator("svg .line").is_visible(), "the price of an hour is a line")
    expect(session.page.locator("svg .limit").count() == 1, "the limit of the spike guard is a line")
    session.page.click("main a:text-is('Dry run')")
    session.check("dry-run")
    expect(re.search("amount at most|nothing is due", session.text().lower()), "a dry run has what is due")


def approvals(session):
    session.open("approvals")
    session.check("approvals")
    expect("412.80 USD" in session.text(), "the spike has its amount")
    session.send("Approve for 24 h", amount="1.00", reason="test")
    expect("not 1.00" in session.text(), "another amount is not approved")


def holds(session):
    session.open("holds")
    session.check("holds")
    reasons = session.page.locator("main nav a").count()
    expect(reasons == 13, f"there is an instance for each reason, not for {reasons} of 13")
    for closed in ["instance_deleted", "instance_transferred"]:
        expect(closed in session.text(), f"{closed} is listed")
    session.page.click("main nav a:has-text('no_price')")
    expect("set the plan's price" in session.text(), "each reason has what resolves it")


def wallets(session):
    session.open("wallets")
    session.check("wallets")
    # The daemon of the demo may bill another hour meanwhile.
    for hours in ["(60|59) h", "(20|19) h", "(0 h|owes)"]:
        expect(re.search(hours, session.text()), f"a wallet covers {hours}")
    session.page.locator("main tr", has_text=re.compile("(60|59) h")).first.locator("a").first.click()
    session.check("wallet")
    expect("Instances by price" in session.text(), "a wallet shows what spends its money")
    session.send("Set the policy", mode="exempt", credit_limit="much", reason="internal")
    expect("not an amount" in session.text(), "an invalid amount is explained")
    session.page.fill("[name=credit_limit]", "0.00")
    session.page.click("main form button")
    expect("exempt" in session.text() and "internal" in session.text(), "the policy is set")
    session.open("events")
    session.check("events")
    session.page.locator("main tr", has_text="dead").locator("a").first.click()
    session.check("event")
    expect("connection refused" in session.text(), "a dead letter has its last error")


def charge(session):
    session.open("wallets")
    session.page.locator("main tr", has_text=re.compile("(60|59) h")).first.locator("a").first.click()
    session.page.locator("main td a").first.click()
    session.check("charge")
    expect("adds up" in session.text() and "per hour" in session.text(), "a charge is a sum")


def audit_log(session):
    session.open("audit-log")
    session.check("audit-log")
    expect("is intact" in session.text(), "the chain is verified")
    session.page.fill("[name=actor]", "grace")
    session.page.click(".filter button")
    expect("price list" in session.text(), "the log is filtered")


def act(session):
    session.context.clear_cookies()
    session.sign_in()
    # Two variants run at the same time, with and without JavaScript.
    job = "audit" if session.script else "prepaid"
    session.open(f"jobs/{job}")
    reason = f"check of {session.variant}"
    session.send("Pause", reason=reason)
    expect(f"paused by ada: {reason}" in session.text(), "the job is paused")
    session.send("Resume", reason="done")
    expect("Pause" in session.text() and "paused by ada" not in session.text(), "the job is resumed")
    # A page of another origin sends the same form.
    session.page.goto(session.site.foreign)
    session.page.click("button")
    expect("Forbidden" in session.text(), "a form of another origin is refused")
    session.open("")
    session.page.click("button:text-is('Sign out')")
    expect("Sign in" in session.text(), "the person is signed out")


FLOWS = [sign_in, overview, job, run, schedule, billing, approvals, holds, wallets, charge, audit_log, act]


class Site:
    """The demo with its console, and a page of another origin."""

    def __init__(self, arguments):
        self.violations, self.picture = [], arguments.picture
        self.axe = pathlib.Path(arguments.axe).read_text()
        environment = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
        command = [arguments.program, "demo", "--serve", "--json", "--instances", "250"]
        log = open(arguments.log, "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: the demo does not start: see {arguments.log}")
        demo = json.loads(line)
        self.url, self.token = demo["url"], demo["token"]
        self.wait_for_wallets()
        form = f"<form method=post action='{self.url}/console/jobs/audit/pause'><button>Go</button></form>".encode()

        class Foreign(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(form)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # Another host name is another site for the browser.
        self.foreign = f"http://localhost:{server.server_port}/"

    def wait_for_wallets(self):
        """Waits until the daemon is known to be alive and the prepaid policy has checked the wallets for the first time."""
        for _ in range(600):
            alive = any(daemon["liveness"] in ["alive", "failing"] for daemon in self.read("daemons")["daemons"])
            if alive and self.read("wallets")["wallets"]:
                return
            time.sleep(0.1)
        self.stop()
        sys.exit("error: the demo does not check its wallets")

    def read(self, page):
        headers = {"Authorization": f"Bearer {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/{page}", headers=headers), timeout=60) as answer:
            return json.load(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)


def run_variants(site, variants, arguments):
    """Runs every flow in these variants with one browser; returns the number of flows and the failures."""
    failures, count = [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for variant in variants:
            state = None
            for flow in FLOWS:
                is_wanted = not arguments.only or bool(re.search(arguments.only, flow.__name__))
                if not is_wanted and state:
                    continue
                session = Session(browser, site, variant, arguments.screenshots, state)
                try:
                    flow(session) if is_wanted else session.sign_in()
                    expect(not session.errors, f"the browser reports {session.errors}")
                except Exception as error:
                    failures.append(f"{flow.__name__} in {session.variant}: {str(error)[:600]}")
                count += is_wanted
                # The flows after the first one continue its sign-in.
                state = state or session.context.storage_state()
                session.close()
        browser.close()
    return count, failures


def main():
    parser = argparse.ArgumentParser()
    for option in ["--program", "--chromium", "--axe", "--log"]:
        parser.add_argument(option, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--screenshots", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    parser.add_argument("--only")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--widths", type=lambda text: [int(width) for width in text.split(",")], default=WIDTHS)
    arguments = parser.parse_args()
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    variants = list(itertools.product(THEMES, arguments.widths, SCRIPTS))
    if arguments.sample:
        # Half of them, in which each two values of two properties occur together.
        variants = [one for one in variants if (one[0] == "dark") ^ (one[1] == WIDTHS[0]) ^ one[2]]
    site = Site(arguments)
    try:
        # Two browsers, because most of a flow is waiting: one with JavaScript and one without it, which act on different jobs.
        halves = [[one for one in variants if one[2]], [one for one in variants if not one[2]]]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda half: run_variants(site, half, arguments), halves))
    finally:
        site.stop()
    flows = sum(count for count, _ in results)
    failures = [failure for _, failed in results for failure in failed]
    for line in failures + site.violations:
        print(line, file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    result = {"flows": flows, "failed": len(failures), "axe_violations": len(site.violations), "seconds": seconds}
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{flows} flows, {len(failures)} failed, {len(site.violations)} violations, in {seconds} s")
    sys.exit(1 if failures or site.violations else 0)


main()
