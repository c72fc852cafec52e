import subprocess
import sys

from shoal.process.threads import start_thread


def test_a_thread_has_a_name_and_may_end():
    thread = start_thread("quick", lambda: None)
    thread.join(5)
    assert thread.name == "quick"
    assert thread.daemon


def test_a_broken_essential_thread_takes_the_process_down_loudly():
    code = """
import threading
from shoal.process.threads import start_thread
def broken():
    raise ValueError("the loop broke")
start_thread("loop", broken)
threading.Event().wait(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 70
    assert "thread_failed" in done.stdout + done.stderr
    assert "the loop broke" in done.stdout + done.stderr
