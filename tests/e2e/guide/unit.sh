# What `systemctl start` and `stop` do with the unit that was installed, as far as a test needs it: its command under its user, with a
# copy of the address, and its folder. Sourced by `guide.sh`.
unit=/etc/systemd/system/billing-daemon.service
of_unit() { sed -n "s/^$1=//p" "$unit" | tail -n 1; }

start_unit() {
    local user credentials=/run/credentials
    user=$(of_unit User)
    install -d "$credentials"
    install -m 400 -o "$user" /etc/billing-daemon/database-url "$credentials/database-url"
    install -d -m 750 -o "$user" "$(of_unit WorkingDirectory)"
    # shellcheck disable=SC2046
    setpriv --reuid "$user" --regid "$(of_unit Group)" --clear-groups --no-new-privs \
        env -i --chdir="$(of_unit WorkingDirectory)" PATH="$PATH" CREDENTIALS_DIRECTORY="$credentials" \
        STATE_DIRECTORY="$(of_unit WorkingDirectory)" $(of_unit ExecStart) >/mnt/log 2>&1 &
    daemon=$!
    for _ in $(seq 600); do
        ! sudo billing-daemon status >/dev/null 2>&1 || return 0
        kill -0 "$daemon" || break
        sleep 0.1
    done
    cat /mnt/log
    ls -ln "$(of_unit WorkingDirectory)"
    echo "waited for a status without problems:"
    sudo billing-daemon status
    return 1
}

stop_unit() {
    kill -TERM "$daemon"
    wait "$daemon"
}
