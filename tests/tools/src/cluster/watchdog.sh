# Ends the servers and the daemons of a cluster when the process that started them ends, however it ends: that process holds the other
# end of this script's input, and the kernel closes it. A process belongs to the cluster if it works in the cluster's folder.
#
# $1: the folder. It is removed unless it contains a file `keep`.
folder=$1
trap '' INT TERM HUP PIPE
cat >/dev/null

# Again until none is left: a process may have started another one meanwhile.
for round in 1 2 3 4 5; do
    found=
    for process in /proc/[0-9]*; do
        case $(readlink "$process/cwd" 2>/dev/null) in
        "$folder"/*) found=yes; kill -KILL "${process#/proc/}" 2>/dev/null ;;
        esac
    done
    [ -n "$found" ] || break
    sleep 0.2
done
[ -e "$folder/keep" ] || rm -rf "$folder"
