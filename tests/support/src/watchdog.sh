# Makes a PostgreSQL cluster, starts it, and takes it away again when the process that started it ends, however it
# ends: that process holds the other end of this script's input, and the kernel closes it.
#
# $1: where PostgreSQL's programs are; $2: an empty folder of ours; $3: the port of its primary, if it is to be a standby.
# Each line of input is a port to try. The answers are `made` or `failed` for the cluster, then `up` or `down` for each
# port; $2/log has the reason, for as long as the other end is open.
programs=$1
folder=$2

finish() {
    "$programs/pg_ctl" -D "$folder/data" -m immediate -w stop
    rm -rf "$folder"
}
trap finish EXIT
# The reader of the responses may be gone.
trap '' PIPE

if [ -n "$3" ]; then
    # In the folder of the actual server, which need not be on the PATH.
    "$(dirname "$(readlink -f "$programs/postgres")")/pg_basebackup" -d "host=127.0.0.1 port=$3 user=postgres" -D "$folder/data" -c fast -R --no-sync
else
    "$programs/initdb" -D "$folder/data" -U postgres -A trust --locale=C --encoding=UTF8 --no-sync
fi >"$folder/log" 2>&1 || { echo failed; read -r _; exit 1; }

# Nothing here outlives the process, so nothing needs to reach the disk. The odd time zone shows at once any code that
# reads the session's own.
cat >>"$folder/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '$folder'
timezone = 'Asia/Kathmandu'
fsync = off
full_page_writes = off
synchronous_commit = off
max_wal_size = 128MB
max_connections = 400
CONF
echo made

while read -r port; do
    if "$programs/pg_ctl" -D "$folder/data" -l "$folder/log" -o "-p $port" -w start >"$folder/start" 2>&1; then
        echo up
    else
        echo down
    fi
done
